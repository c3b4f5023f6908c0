#!/usr/bin/env python3
"""Asks a server on this machine all sorts of things for a while, and looks for leaks.

    scripts/soak.py http://127.0.0.1:11434 --pid PID --model demo [--other NAME] --minutes 10

Memory, open files and threads of the server's process are sampled once a second. After a warm-up
(a third of the time) a line is fitted through each; a leak is a line that rises by more than its
bound until the end. The exit code is 1 then, or if plain requests failed. Linux only: it reads
/proc.
"""

import argparse
import os
import random
import sys
import threading
import time

from loopback import Target

SAMPLE_S = 1.0
WARM_UP = 1 / 3
CHAT = "/v1/chat/completions"
# How much the line may rise after the warm-up: noise of an allocator, connections that come and go.
BOUNDS = {"rss_bytes": 64 << 20, "files": 16, "threads": 8}


class Load:
    """Clients that ask until it is time to stop."""

    def __init__(self, target, models, seed):
        self.target = target
        self.models = models
        self.seed = seed
        self.stop = threading.Event()
        self.lock = threading.Lock()
        self.counts = {}

    def count(self, kind, fine):
        with self.lock:
            good, bad = self.counts.get(kind, (0, 0))
            self.counts[kind] = (good + fine, bad + (not fine))

    def client(self, number):
        choice = random.Random(self.seed * 1000 + number)
        kinds = (self.chat, self.stream, self.cancel, self.embed, self.bad, self.look)
        while not self.stop.is_set():
            kind = choice.choices(kinds, weights=(4, 4, 2, 2, 2, 1))[0]
            # Busy is an answer as well: a queue has an end.
            status = kind(choice)
            self.count(kind.__name__, status)

    def question(self, choice, **more):
        words = " ".join(
            choice.choices(("red", "green", "blue", "seven", "tree"), k=choice.randint(1, 60))
        )
        model = self.models[0] if choice.random() < 0.8 else self.models[-1]
        message = {"role": "user", "content": words}
        return {"model": model, "messages": [message], "max_tokens": choice.randint(1, 32), **more}

    def chat(self, choice):
        return self.target.ask("POST", CHAT, self.question(choice), timeout_s=600)[0] in (
            200,
            429,
            503,
        )

    def stream(self, choice):
        path = choice.choice(("/api/chat", CHAT, "/v1/messages"))
        return self.target.ask("POST", path, self.question(choice, stream=True), timeout_s=600)[
            0
        ] in (200, 429, 503)

    def cancel(self, choice):
        try:
            with self.target.connect(600) as connection:
                body = self.question(choice, stream=True) | {"max_tokens": 512}
                connection.sendall(self.target.request("POST", CHAT, body))
                connection.recv(choice.choice((1, 512, 4096)))
            return True
        except OSError:
            return False

    def embed(self, choice):
        body = {"model": self.models[0], "input": ["some text"] * choice.randint(1, 4)}
        # A model that makes no embeddings says so.
        return self.target.ask("POST", "/v1/embeddings", body, timeout_s=600)[0] in (
            200,
            400,
            429,
            501,
            503,
        )

    def bad(self, choice):
        body = choice.choice((b"{", b"\xff", b"[" * 10_000, b'{"model": "no-such-model"}'))
        return self.target.ask("POST", choice.choice(("/api/chat", CHAT, "/v1/messages")), body)[
            0
        ] in (400, 404)

    def look(self, choice):
        return (
            self.target.ask("GET", choice.choice(("/health", "/metrics", "/ui/status", "/api/ps")))[
                0
            ]
            == 200
        )


def sample(pid):
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
        return {
            "rss_bytes": pages * os.sysconf("SC_PAGESIZE"),
            "files": len(os.listdir(f"/proc/{pid}/fd")),
            "threads": len(os.listdir(f"/proc/{pid}/task")),
        }
    except OSError as error:
        sys.exit(f"the server's process can't be watched any more: {error}")


def slope(points):
    """Least squares: how much y rises when x rises by one."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def watch(pid, minutes):
    begin = time.monotonic()
    samples = []
    while (now := time.monotonic() - begin) < minutes * 60:
        samples.append((now, sample(pid)))
        time.sleep(SAMPLE_S)
    return samples


def judge(samples):
    """Prints how each number grew; returns whether all stayed within their bounds."""
    warm = samples[int(len(samples) * WARM_UP) :]
    period_s = warm[-1][0] - warm[0][0]
    print(f"{'':<10} {'first':>14} {'last':>14} {'most':>14} {'rise by fit':>14} {'bound':>14}")
    fine = True
    for name, bound in BOUNDS.items():
        values = [(at, numbers[name]) for at, numbers in warm]
        rise = slope(values) * period_s
        fine &= rise <= bound
        most = max(value for _, value in values)
        print(
            f"{name:<10} {values[0][1]:>14,} {values[-1][1]:>14,} {most:>14,} {rise:>14,.0f} {bound:>14,}{'' if rise <= bound else '  LEAK'}"
        )
    print(f"{len(warm)} samples in {period_s:.0f} s after the warm-up")
    return fine


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    arguments.add_argument("url")
    arguments.add_argument("--pid", type=int, required=True, help="the server's process")
    arguments.add_argument("--model", required=True, help="a model that the server has")
    arguments.add_argument("--other", help="another one, so that models give way to each other")
    arguments.add_argument("--key", help="a key of the server, if it has any")
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--clients", type=int, default=6)
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()
    if given.minutes * 60 * (1 - WARM_UP) < 10 * SAMPLE_S:
        sys.exit("that is too short to see anything; give at least 0.3 minutes")
    load = Load(
        Target(given.url, given.model, given.key),
        (given.model, given.other or given.model),
        given.seed,
    )
    clients = [
        threading.Thread(target=load.client, args=(at,), daemon=True) for at in range(given.clients)
    ]
    for client in clients:
        client.start()
    samples = watch(given.pid, given.minutes)
    load.stop.set()
    for client in clients:
        client.join(timeout=600)
    fine = judge(samples)
    for kind, (good, bad) in sorted(load.counts.items()):
        print(f"{kind:<10} {good:>8} as expected {bad:>6} not")
        fine &= bad == 0
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
