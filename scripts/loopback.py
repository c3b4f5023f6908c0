"""HTTP by hand against a server on this machine, for attack.py and soak.py.

Plain sockets, because what those scripts send is often no HTTP that a library would agree to send.
"""

import ipaddress
import json
import re
import socket
import sys
from urllib.parse import urlsplit

ANSWER_BYTES_MAX = 64 << 20


class Target:
    """The server: where it is, its key, a model of it."""

    def __init__(self, url, model, key=None):
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            sys.exit("the URL has to be like http://127.0.0.1:11434")
        address = socket.gethostbyname(parts.hostname)
        if not ipaddress.ip_address(address).is_loopback:
            sys.exit("only servers on this machine are attacked: the URL has to be of the loopback")
        self.address = (address, parts.port or 80)
        self.host = parts.netloc
        self.model = model
        self.key = key

    def connect(self, timeout_s=30.0):
        return socket.create_connection(self.address, timeout=timeout_s)

    def head(self, method, path, headers=(), host=None, key=True):
        """A request's line and headers, the empty line included."""
        lines = [f"{method} {path} HTTP/1.1", f"host: {host or self.host}"]
        if key and self.key:
            lines.append(f"authorization: Bearer {self.key}")
        lines += [f"{name}: {value}" for name, value in headers]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def request(self, method, path, body=b"", headers=(), host=None, key=True):
        """A whole request, after which the connection is closed."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        headers = [*headers, ("content-length", len(body)), ("connection", "close")]
        return self.head(method, path, headers, host, key) + body

    def ask(self, method, path, body=b"", timeout_s=120.0, **how):
        """Sends a request. Returns status and body; status 0 if the connection broke off."""
        return self.exchange(self.request(method, path, body, **how), timeout_s)

    def exchange(self, sent, timeout_s=120.0):
        """Sends bytes, and reads until the server closes the connection."""
        try:
            with self.connect(timeout_s) as connection:
                try:
                    connection.sendall(sent)
                except OSError:
                    pass  # it may have answered and closed before all was sent
                return parse(read_all(connection))
        except OSError:
            return 0, b""

    def metrics(self):
        """Values of /metrics by name with labels."""
        status, body = self.ask("GET", "/metrics")
        if status != 200:
            sys.exit(f"/metrics answers {status}; if the server has keys, give one")
        lines = (line.rsplit(" ", 1) for line in body.decode().splitlines() if line[:1] != "#")
        return {name: float(value) for name, value in lines}


def read_all(connection):
    """All that comes until the end, or until nothing comes for as long as the timeout."""
    pieces, total = [], 0
    try:
        while total < ANSWER_BYTES_MAX and (piece := connection.recv(1 << 16)):
            pieces.append(piece)
            total += len(piece)
    except OSError:
        pass
    return b"".join(pieces)


def parse(answer):
    """Status and body of the first answer; chunks are joined."""
    head, _, body = answer.partition(b"\r\n\r\n")
    match = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    if not match:
        return 0, b""
    if re.search(rb"transfer-encoding: *chunked", head, re.IGNORECASE):
        body = joined(body)
    return int(match[1]), body


def joined(chunks):
    pieces = []
    while match := re.match(rb"([0-9a-fA-F]+)[^\n]*\n", chunks):
        size = int(match[1], 16)
        if size == 0:
            break
        pieces.append(chunks[match.end() : match.end() + size])
        chunks = chunks[match.end() + size + 2 :]
    return b"".join(pieces)
