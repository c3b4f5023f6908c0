#!/usr/bin/env python3
"""A stand-in for Hypura's server: serves crates/server/ui and scripted answers.

    scripts/ui/mock.py [--port N] [--key KEY] [--empty]

Each model is a scenario, named by what happens when it is asked: see `ANSWERS`.
"""

import argparse
import json
import math
import pathlib
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

UI = pathlib.Path(__file__).resolve().parents[2] / "crates" / "server" / "ui"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
CSP = "default-src 'self'"
BODY_BYTES_MAX = 1 << 20

REASONING = "The question is about memory. Two tiers matter here: what stays, and what is read when it is needed.\n"
TEXT = """A model that is larger than memory can still run, if the bytes that matter are there **in time**.

1. What every token needs (attention, norms, routers) stays in memory.
2. Experts come from the drive when the *router* asks for them.

```sh
hypura run model.gguf --memory 3GiB
```

The cost is `bytes / bandwidth`: 4 experts of 1.2 MiB at 2.4 GB/s are about 2 ms per layer. \
See [the measurements](https://example.com/performance) for the rest.
"""


def tokens(text):
    """Cuts text into pieces of the size of tokens."""
    return [text[at : at + 5] for at in range(0, len(text), 5)]


class Mock:
    """A mock server on a loopback port that the system chooses, in a thread of its own.

    `received` holds (path, body, headers) of each POST; `hung_up` is set when a client leaves an
    answer early; `status_fails` makes /ui/status answer 500, `status_given` answers in its place.
    """

    def __init__(self, port=0, key=None, empty=False, large=False):
        self.key, self.empty, self.large = key, empty, large
        self.received = []
        self.hung_up = threading.Event()
        self.status_fails = False
        self.status_given = None
        self.started = time.monotonic()
        self.active = 0
        handler = type("BoundHandler", (Handler,), {"mock": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def names(self):
        return [] if self.empty else list(ANSWERS)

    def status(self):
        models = [] if self.empty else [model_status(self)]
        return {
            "version": "0.1.0",
            "uptime_s": time.monotonic() - self.started,
            "budget_bytes": 3 << 30,
            "rss_bytes": 2_900_000_000 if models else 21_000_000,
            "requests": {"active": self.active, "waiting": 0, "total": len(self.received), "queue_max": 64},
            "models": models,
            "sessions": []
            if self.empty
            else [
                {"name": "trip", "model": "demo", "tokens": 812, "modified": "2026-01-01T00:05:00Z"},
                {"name": "release-notes", "model": "demo", "tokens": 2406, "modified": "2026-01-03T10:00:00Z"},
            ],
        }


class Handler(BaseHTTPRequestHandler):
    mock: Mock

    def do_GET(self):
        path = self.path.split("?")[0]
        if path in ("/ui", "/ui/"):
            return self.send_file(UI / "index.html")
        if path.startswith("/ui/") and path != "/ui/status":
            return self.send_file(UI / path.removeprefix("/ui/"))
        if not self.allowed():
            return None
        if path == "/ui/status":
            if self.mock.status_fails:
                return self.send_json(500, {"error": "the engine is gone."})
            return self.send_json(200, self.mock.status_given or self.mock.status())
        if path == "/api/tags":
            return self.send_json(200, {"models": [{"name": name, "size": 5_100_000_000} for name in self.mock.names()]})
        if path == "/api/ps":
            return self.send_json(200, {"models": [{"name": name, "size": 5_100_000_000} for name in self.mock.names()[:1]]})
        return self.send_json(404, {"error": f"there is no {path}."})

    def do_POST(self):
        size = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(min(size, BODY_BYTES_MAX)))
        self.mock.received.append((self.path, body, dict(self.headers)))
        if not self.allowed():
            return
        if self.path == "/api/show":
            can = ["completion", "thinking"] if body.get("model") == "demo:latest" else ["completion"]
            self.send_json(200, {"capabilities": can})
        elif self.path == "/api/chat":
            self.chat(body)
        else:
            self.send_json(404, {"error": f"there is no {self.path}."})

    def chat(self, body):
        answer = ANSWERS.get(body.get("model"))
        if answer is None:
            return self.send_json(404, {"error": f"model '{body.get('model')}' not found."})
        if answer is refused:
            return self.send_json(500, {"error": "the model needs 41 GiB and may take 3 GiB; raise --memory."})
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        self.mock.active += 1
        try:
            for line in answer(body):
                self.wfile.write(json.dumps(line).encode() + b"\n")
                self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.mock.hung_up.set()
        finally:
            self.mock.active -= 1
        return None

    def allowed(self):
        if self.mock.key is None or self.headers.get("Authorization") == f"Bearer {self.mock.key}":
            return True
        self.send_json(401, {"error": "this server needs a key."})
        return False

    def send_json(self, code, value):
        self.send_bytes(code, "application/json", json.dumps(value).encode())

    def send_file(self, path):
        if path.parent != UI or not path.is_file():
            return self.send_json(404, {"error": "there is no such file."})
        return self.send_bytes(200, TYPES[path.suffix], path.read_bytes())

    def send_bytes(self, code, kind, data):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", CSP)
        try:
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # The page was closed meanwhile.

    def log_message(self, *_):
        pass


def piece(content="", **more):
    return {"message": {"role": "assistant", "content": content, **more}, "done": False}


def whole(body):
    """Reasoning if it is asked for, then text, then the numbers."""
    if body.get("think"):
        for token in tokens(REASONING):
            yield piece(thinking=token)
    for token in tokens(TEXT):
        yield piece(token)
        time.sleep(0.005)
    yield {
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 940,
        "prompt_eval_duration": 320_000_000,
        "eval_count": 128,
        "eval_duration": 4_250_000_000,
        "load_duration": 1_000_000,
        "hypura": {"reused_tokens": 812, "ttft_ms": 420.0},
    }


def endless(_):
    """Words until the client hangs up."""
    while True:
        yield piece("again ")
        time.sleep(0.02)


def refused(_):
    """An HTTP error with a reason."""


def failing(_):
    """An error within the stream."""
    yield piece("It began well")
    yield {"error": "reading the model failed: the file changed."}


def cut(_):
    """A stream that ends without its last line."""
    yield piece("Half a sent")


def hostile(_):
    """Text that tries to be more than text."""
    yield piece('<img src="https://evil.invalid/x" onerror="document.title=1"><script>document.title=2</script>\n\n')
    yield piece("[click](javascript:document.title=3) [go](https://example.com/a) **bold *both* bold**\n\n")
    yield piece("- one\n  - two\n\n    ```js\n    let x = 1;\n    ```\n- three\n\n" + "*" * 4000)
    yield {"message": {"content": ""}, "done": True, "done_reason": "length"}


ANSWERS = {
    "demo:latest": whole,
    "endless:latest": endless,
    "refused:latest": refused,
    "failing:latest": failing,
    "cut:latest": cut,
    "hostile:latest": hostile,
}


def model_status(mock):
    layers, experts = (48, 128) if mock.large else (8, 32)
    rng = random.Random(7)
    uses, resident = [], []
    for layer in range(layers):
        row = [int(600 * rng.random() ** 4 / (1 + layer / 30)) for _ in range(experts)]
        floor = sorted(row)[int(experts * 0.45)]
        bits = [use > floor and rng.random() < 0.93 for use in row]
        uses.append(row)
        resident.append(hex_bits(bits))
    beat = time.monotonic() - mock.started
    return {
        "name": "demo:latest",
        "architecture": "qwen3moe",
        "mode": "expert-streaming",
        "layout": "fast",
        "n_ctx": 4096,
        "parallel": 4,
        "expires_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 290)),
        "model_bytes": 5_100_000_000,
        "memory_bytes": 2_700_000_000,
        "tiers": {
            "ram_weights_bytes": 610_000_000,
            "ram_slots_bytes": 1_660_000_000,
            "ram_kv_bytes": 402_653_184,
            "ram_buffers_bytes": 120_000_000,
            "drive_weights_bytes": 2_830_000_000,
            "vram_bytes": 0,
            "kv_hot_bytes": 0,
            "kv_cold_bytes": 522_000_000,
            "kv_cold_bytes_max": 8589934592,
        },
        "stream": {"lookups": 51200, "hits": 47600, "read_bytes": 4_234_567_890, "read_wait_ms": 6120.5},
        "rates": {
            "decode_tokens_per_s": 15.5 + 2 * math.sin(beat / 5),
            "prompt_tokens_per_s": 400.0,
            "read_bytes_per_s": 7e8 + 2e8 * math.sin(beat / 3),
            "hit_rate": 0.93 + 0.03 * math.sin(beat / 7),
        },
        "totals": {"prompt_tokens": 5000, "reused_tokens": 3000, "generated_tokens": 900},
        "experts": {"layers": layers, "experts": experts, "uses": uses, "resident": resident},
        "sequences": [{"id": 0, "state": "decode", "tokens": 812, "model": "demo:latest"}],
    }


def hex_bits(bits):
    """Bit e of a row is bit e % 8 of its byte e // 8."""
    row = bytearray((len(bits) + 7) // 8)
    for at, bit in enumerate(bits):
        row[at // 8] |= bit << (at % 8)
    return row.hex()


def main():
    parser = argparse.ArgumentParser(description="serve Hypura's page with scripted answers")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key")
    parser.add_argument("--empty", action="store_true")
    parser.add_argument("--large", action="store_true")
    args = parser.parse_args()
    mock = Mock(args.port, args.key, args.empty, args.large)
    print(f"{mock.base}/ui", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
