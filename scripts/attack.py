#!/usr/bin/env python3
"""Does to a server on this machine what an attacker would, and checks that it still answers.

    scripts/attack.py http://127.0.0.1:11434 --model demo [--key KEY]

Everything is bounded: at most 1,000 connections, a few seconds for what is slow, and about 40 MB
for what is large. Prints a table; the exit code is 1 if anything was not as it should be.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from loopback import Target, parse, read_all

CONNECTIONS = 1000
SLOW_CLIENTS = 40
SLOW_S = 3.0
CANCELS = 20
# What a server with its default limits takes at most, and one more.
BODY_BYTES_MAX = 32 << 20
CHAT = "/v1/chat/completions"
APIS = ("/api/chat", CHAT, "/v1/messages")
PATHS = (
    "../../../../etc/passwd",
    "/etc/passwd",
    "..\\..\\windows",
    "C:\\windows",
    "file:///etc/passwd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "demo/../../../etc/passwd",
    "demo:../../etc",
    "demo\u0000",
    "~/.ssh/id_rsa",
    "hf.co/../../etc/passwd",
    "a" * 10_000,
    "",
)


class Attack:
    """The attacks, and what came of them."""

    def __init__(self, target):
        self.target = target
        self.rows = []

    def note(self, name, expected, seen, fine):
        self.rows.append((name, expected, str(seen), fine))

    def status(self, name, allowed, answer):
        """An answer whose status has to be one of these; its body may tell nothing of the machine."""
        status, body = answer
        leaks = b"root:x:" in body or b"panicked" in body
        self.note(
            name,
            "/".join(map(str, allowed)),
            "a leak" if leaks else status,
            status in allowed and not leaks,
        )

    def chat(self, **more):
        message = {"role": "user", "content": "Say hello."}
        return {"model": self.target.model, "messages": [message], "max_tokens": 8, **more}

    def is_well(self, during):
        """Whether a plain request is answered now."""
        self.status(
            f"plain request {during}", (200,), self.target.ask("GET", "/health", timeout_s=20)
        )

    # Who may ask.

    def names_and_origins(self):
        ask = self.target.ask
        for host in (
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "2130706433",
        ):
            self.status(f"Host {host}", (403,), ask("GET", "/api/tags", host=host))
        for host in ("localhost@evil.example", "[::1", ""):
            self.status(f"Host {host!r}", (400,), ask("GET", "/api/tags", host=host or " "))
        twice = [("host", "localhost")]
        self.status("two Host headers", (400,), ask("GET", "/api/tags", headers=twice))
        for origin in ("https://evil.example", "null"):
            headers = [("origin", origin)]
            self.status(f"Origin {origin}", (403,), ask("POST", CHAT, self.chat(), headers=headers))
            headers.append(("access-control-request-method", "POST"))
            self.status(f"preflight of {origin}", (403,), ask("OPTIONS", CHAT, headers=headers))

    def keys(self):
        if not self.target.key:
            return
        ask = self.target.ask
        wrong = [("authorization", f"Bearer {self.target.key}x")]
        for path in (
            *APIS,
            "/metrics",
            "/ui/status",
            "//ui/status",
            "/ui/../metrics",
            "/v1/models",
        ):
            self.status(f"no key for {path}", (401, 404), ask("GET", path, key=False))
            self.status(
                f"wrong key for {path}", (401, 404), ask("GET", path, key=False, headers=wrong)
            )

    # What they send.

    def bodies(self):
        bodies = {
            "no body": b"",
            "half a body of JSON": b'{"model": ',
            "bad UTF-8": b'{"model": "\xff\xfe\x80"}',
            "lone surrogate": b'{"model": "\\ud800"}',
            "deep JSON": b"[" * 100_000,
            "deep JSON in a field": b'{"model": "x", "messages": '
            + b"[" * 100_000
            + b"]" * 100_000
            + b"}",
            "not an object": b"3",
            "huge number": b'{"model": "x", "max_tokens": 1e999}',
            "same field twice": b'{"model": "x", "model": "y"}',
            "wrong types": b'{"model": 1, "messages": "x", "stream": "y"}',
        }
        for path in APIS:
            for name, body in bodies.items():
                answer = self.target.ask("POST", path, body)
                self.status(f"{name} to {path}", (400, 404, 422), answer)

    def oversized(self):
        head = self.target.head
        announced = head("POST", CHAT, [("content-length", BODY_BYTES_MAX + 1)])
        self.status("too large, announced", (413,), self.target.exchange(announced))
        chunked = head("POST", CHAT, [("transfer-encoding", "chunked")])
        chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
        many = chunked + chunk * (BODY_BYTES_MAX // (1 << 20) + 1) + b"0\r\n\r\n"
        self.status("too large, in chunks", (413, 0), self.target.exchange(many))
        bad = chunked + b"zz\r\nxx\r\n"
        self.status("malformed chunk", (400,), self.target.exchange(bad))
        headers = [(f"x-{at}", "y" * 100) for at in range(2000)]
        self.status(
            "too many headers", (431, 0), self.target.ask("GET", "/health", headers=headers)
        )
        self.status("too long a path", (414, 431, 0), self.target.ask("GET", "/" + "x" * 300_000))
        for text in (
            b"\x00" * 100 + b"\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
            b"GET\r\n\r\n",
        ):
            self.status(f"no HTTP: {text[:6]!r}", (400, 0), self.target.exchange(text))

    def smuggling(self):
        inner = self.target.head("GET", "/api/version")
        both = [("content-length", 5 + len(inner)), ("transfer-encoding", "chunked")]
        sent = self.target.head("POST", CHAT, both) + b"0\r\n\r\n" + inner
        with self.target.connect(5) as connection:
            connection.sendall(sent)
            answers = read_all(connection)
        # Chunked counts, or all of it is refused: the body is empty either way.
        self.note("length and chunks together", "400", parse(answers)[0], parse(answers)[0] == 400)

    def schemas(self):
        deep = {"type": "string"}
        for _ in range(60):
            deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
        wide = {
            "type": "object",
            "properties": {f"k{at}": {"type": "string"} for at in range(5000)},
        }
        doubling = {f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(40)}
        schemas = {
            "deep": deep,
            "wide": wide,
            "doubling": {"$defs": {**doubling, "d40": {"type": "null"}}, "$ref": "#/$defs/d0"},
            "round in a circle": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
            "huge bounds": {
                "type": "array",
                "minItems": 10**9,
                "maxItems": 10**18,
                "items": {"type": "string"},
            },
            "costly pattern": {
                "type": "string",
                "pattern": "^(" + "(a{0,1000}){0,1000}" * 5 + ")$",
            },
        }
        for name, schema in schemas.items():
            ollama = {
                "model": self.target.model,
                "prompt": "x",
                "stream": False,
                "format": schema,
                "options": {"num_predict": 4},
            }
            answer = self.target.ask("POST", "/api/generate", ollama)
            self.status(f"schema: {name}", (200, 400), answer)
            self.is_well(f"after schema: {name}")

    def model_names(self):
        for name in PATHS:
            shown = name if len(name) < 40 else f"{name[:8]}... ({len(name)} bytes)"
            for path in APIS:
                body = self.chat() | {"model": name}
                self.status(
                    f"model {shown!r} to {path}", (400, 404), self.target.ask("POST", path, body)
                )
            for path in ("/api/show", "/api/pull"):
                body = {"model": name, "stream": False}
                if (
                    path == "/api/pull"
                    and name
                    and not name.startswith(("..", "/", "~", "file:", "demo:"))
                ):
                    continue  # nothing is asked of the network here
                self.status(
                    f"model {shown!r} to {path}",
                    (400, 403, 404),
                    self.target.ask("POST", path, body),
                )
        for path in (
            "/ui/../../etc/passwd",
            "/ui/%2e%2e/%2e%2e/etc/passwd",
            "/ui//etc/passwd",
            "/api/blobs/..%2f..%2fetc%2fpasswd",
        ):
            self.status(path, (400, 404, 405), self.target.ask("GET", path))

    # How they behave.

    def crowd(self):
        held = []
        try:
            for _ in range(CONNECTIONS):
                held.append(self.target.connect(5))
        except OSError:
            pass  # ours ran out of files, or theirs
        time.sleep(0.5)
        full = self.target.ask("GET", "/health", timeout_s=10)
        self.status(f"beside {len(held)} idle connections", (200, 503), full)
        # One place for whoever asks.
        held.pop().close()
        time.sleep(0.5)
        metrics = self.target.metrics()
        count, most = (int(metrics[f"hypura_connections{end}"]) for end in ("", "_max"))
        self.note("connections are bounded", f"<= {most}", count, count <= most)
        for connection in held:
            connection.close()
        self.settles("after idle connections")

    def slow(self):
        body = json.dumps(self.chat()).encode()
        headers = self.target.head("POST", CHAT, [("content-length", len(body))])
        writers = [self.target.connect(5) for _ in range(SLOW_CLIENTS)]
        for at, connection in enumerate(writers):
            connection.sendall(headers[: 10 + at] if at % 2 else headers + body[:5])
        readers = [self.target.connect(5) for _ in range(SLOW_CLIENTS // 10)]
        for connection in readers:
            connection.sendall(
                self.target.request("POST", CHAT, self.chat(stream=True, max_tokens=64))
            )
        end = time.monotonic() + SLOW_S
        while time.monotonic() < end:
            for at, connection in enumerate(writers):
                try:
                    connection.sendall(b"a" if at % 2 else b" ")
                except OSError:
                    pass
            time.sleep(0.2)
        self.is_well("beside slow readers and writers")
        for connection in writers + readers:
            connection.close()
        self.settles("after slow readers and writers")

    def pipelining(self):
        one = self.target.head("GET", "/health")
        with self.target.connect(10) as connection:
            connection.sendall(one * 99 + self.target.request("GET", "/health"))
            count = read_all(connection).count(b"HTTP/1.1 200")
        self.note("100 requests in one packet", "100 answers", count, count == 100)

    def cancellations(self):
        def cancel(at):
            path = APIS[at % len(APIS)]
            with self.target.connect(60) as connection:
                body = self.chat(stream=True, max_tokens=512, options={"num_predict": 512})
                connection.sendall(self.target.request("POST", path, body))
                connection.recv(1 if at % 2 else 2048)

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(cancel, at) for at in range(CANCELS)]:
                done.exception()
        self.settles("after cancellations")

    def settles(self, when):
        """Within a while, nothing is left of what was begun."""
        names = ("hypura_connections", "hypura_answers_active", "hypura_answers_waiting")
        left = {}
        for _ in range(60):
            metrics = self.target.metrics()
            left = {name: metrics.get(name, 0) for name in names}
            # The request that asks for them is a connection itself.
            if left["hypura_connections"] <= 2 and not left[names[1]] and not left[names[2]]:
                break
            time.sleep(0.5)
        fine = left["hypura_connections"] <= 2 and not left[names[1]] and not left[names[2]]
        self.note(f"what is left {when}", "nothing", "nothing" if fine else left, fine)

    def still_answers(self):
        answer = self.target.ask("POST", CHAT, self.chat(), timeout_s=300)
        self.status("a plain question at the end", (200,), answer)
        accepted = self.target.metrics().get("hypura_connections_accepted_total", 0)
        self.note("connections are counted", "> 0", int(accepted), accepted > 0)


def table(rows):
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, expected, seen, fine in rows:
        print(f"{'ok  ' if fine else 'FAIL'}  {name:<{widths[0]}}  {expected:<{widths[1]}}  {seen}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    arguments.add_argument("url")
    arguments.add_argument("--model", required=True, help="a model that the server has")
    arguments.add_argument("--key", help="a key of the server, if it has any")
    given = arguments.parse_args()
    target = Target(given.url, given.model, given.key)
    if (
        target.ask(
            "POST",
            CHAT,
            {"model": given.model, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]},
            timeout_s=600,
        )[0]
        != 200
    ):
        sys.exit("the model does not answer; nothing can be learnt from an attack")
    attack = Attack(target)
    steps = (
        attack.names_and_origins,
        attack.keys,
        attack.bodies,
        attack.oversized,
        attack.smuggling,
        attack.schemas,
        attack.model_names,
        attack.pipelining,
        attack.crowd,
        attack.slow,
        attack.cancellations,
        attack.still_answers,
    )
    for step in steps:
        step()
    table(attack.rows)
    failed = sum(not fine for *_, fine in attack.rows)
    print(f"{len(attack.rows)} checks, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
