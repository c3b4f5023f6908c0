#!/usr/bin/env python3
"""What the server costs, what batching brings, and how soon a conversation goes on.

    scripts/bench-server.py cost MODEL            tokens/s through the server against `hypura run`
    scripts/bench-server.py batch MODEL MEMORY    1, 2, 4, 8 requests at a time, weights streaming
    scripts/bench-server.py follow MODEL OTHER    five turns: time to first token, known tokens

MODEL is a name that the folder --models-dir (default: models) has. Everything is on loopback, and
bounded. Ratios come from rounds in which both sides take turns; no test asserts them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HYPURA = os.environ.get("HYPURA", "target/release/hypura")
PROMPTS = [
    "Tell me a story about an old man.",
    "I want to book a table for two.",
    "Tell me a story about a fox and a crow.",
    "What is the weather like in spring?",
    "Tell me about a ship that was lost.",
    "I need a taxi to the station.",
    "Tell me a story about two sisters.",
    "Who lives in the castle on the hill?",
]


class Server:
    """`hypura serve` on a free port."""

    def __init__(self, home, models_dir, *options):
        env = {**os.environ, "HYPURA_HOME": home}
        command = [HYPURA, "serve", "--port", "0", "--models-dir", models_dir, *options]
        self.process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        self.url = None
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if "serving at " in line:
                self.url = line.split("serving at ")[1].split(",")[0].strip()
                break
        if self.url is None:
            sys.exit("the server did not start: " + "".join(self.log))
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self):
        for line in self.process.stderr:
            self.log.append(line)

    def rss_mib(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            fields = dict(line.split(":", 1) for line in status)
        return int(fields["VmRSS"].split()[0]) // 1024, int(fields["VmHWM"].split()[0]) // 1024

    def chat(self, model, messages, n, **options):
        """The final line of an answer, its text, and the seconds until its first text."""
        body = {
            "model": model,
            "messages": messages,
            "options": {"temperature": 0, "num_predict": n, **options},
        }
        request = urllib.request.Request(self.url + "/api/chat", json.dumps(body).encode())
        begin, first, text = time.monotonic(), None, ""
        with urllib.request.urlopen(request, timeout=3600) as answer:
            for line in answer:
                event = json.loads(line)
                if "error" in event:
                    sys.exit(event["error"])
                said = event.get("message", {}).get("content", "")
                if said and first is None:
                    first = time.monotonic() - begin
                text += said
        return event, text, first

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


def say(text):
    print(text, flush=True)


def decode_rate(last):
    """Tokens per second after the first."""
    return (last["eval_count"] - 1) / (last["eval_duration"] / 1e9)


def cost(args):
    """The same greedy answer by both, in turns."""
    prompt, n = PROMPTS[0], args.tokens
    rates = {"run": [], "server": []}
    with tempfile.TemporaryDirectory() as home:
        server = Server(home, args.models_dir, "--kv-cache", "off", *args.option)
        server.chat(args.model, [{"role": "user", "content": prompt}], 8)
        texts = set()
        for _ in range(args.rounds):
            last, text, first = server.chat(
                args.model, [{"role": "user", "content": prompt}], n, seed=0
            )
            rates["server"].append(decode_rate(last))
            texts.add(text.strip())
            stats = os.path.join(home, "stats.json")
            run = subprocess.run(
                [HYPURA, "run", args.model, "--models-dir", args.models_dir, "-p", prompt]
                + ["-n", str(n), "--temperature", "0", "--kv-cache", "off"]
                + ["--stats-json", stats, "--quiet", *args.option],
                env={**os.environ, "HYPURA_HOME": home},
                check=True,
                capture_output=True,
                text=True,
            )
            texts.add(run.stdout.strip())
            with open(stats, encoding="utf-8") as file:
                rates["run"].append(json.load(file)["decode_tokens_per_s"])
            say(f"  server {rates['server'][-1]:8.2f}  run {rates['run'][-1]:8.2f}  first {first * 1e3:.1f} ms")
        rss = server.rss_mib()
        server.stop()
    ratio = statistics.median(s / r for s, r in zip(rates["server"], rates["run"]))
    say(f"decode, server over run: {ratio:.3f} (median of {args.rounds} pairs)")
    say(f"texts equal: {len(texts) == 1}; server RSS {rss[0]} MiB, peak {rss[1]} MiB")


def batch(args):
    """So many requests at once, each answer beside the one that it has alone."""
    with tempfile.TemporaryDirectory() as home:
        server = Server(
            home, args.models_dir, "--memory", args.memory, "--parallel", "8", *args.option
        )
        alone = {}
        for prompt in PROMPTS:
            _, alone[prompt], _ = server.chat(
                args.model, [{"role": "user", "content": prompt}], args.tokens
            )
        base = None
        for width in args.widths:
            results = {}

            def ask(prompt):
                results[prompt] = server.chat(
                    args.model, [{"role": "user", "content": prompt}], args.tokens
                )

            threads = [threading.Thread(target=ask, args=(p,)) for p in PROMPTS[:width]]
            begin = time.monotonic()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            took = time.monotonic() - begin
            tokens = sum(last["eval_count"] for last, _, _ in results.values())
            rate = tokens / took
            base = base or rate
            same, words = 0, []
            for prompt, (_, text, _) in results.items():
                same += text == alone[prompt]
                pairs = zip(text.split(), alone[prompt].split())
                words.append(next((i for i, (a, b) in enumerate(pairs) if a != b), None))
            say(
                f"{width} at once: {tokens} tokens in {took:.1f} s, {rate:.2f} tokens/s, "
                f"{rate / base:.2f} times one; equal to their run alone: {same} of {width}; "
                f"first other word: {words}"
            )
        say(f"RSS now and peak, MiB: {server.rss_mib()}")
        server.stop()


def follow(args):
    """Five turns; then the same again after a restart, and after another model."""
    with tempfile.TemporaryDirectory() as home:
        server = Server(home, args.models_dir, *args.option)
        long = " ".join(PROMPTS * args.repeat)
        messages = [{"role": "user", "content": long}]
        for turn in range(5):
            last, text, first = server.chat(args.model, messages, args.tokens)
            known = last.get("hypura", {}).get("reused_tokens")
            say(f"turn {turn + 1}: first text {first:.3f} s, {known} of {last['prompt_eval_count']} known")
            messages += [
                {"role": "assistant", "content": text},
                {"role": "user", "content": PROMPTS[turn + 1]},
            ]

        def again(what):
            last, _, first = server.chat(args.model, messages, 4)
            known = last.get("hypura", {}).get("reused_tokens")
            load = last.get("load_duration", 0) / 1e9
            say(
                f"{what}: first text {first:.3f} s of which loading {load:.3f}, "
                f"{known} of {last['prompt_eval_count']} known"
            )

        server.chat(args.other, [{"role": "user", "content": "Hi"}], 4)
        again("after another model")
        server.stop()
        server = Server(home, args.models_dir, *args.option)
        again("after a restart")
        server.stop()
    with tempfile.TemporaryDirectory() as home:
        server = Server(home, args.models_dir, *args.option)
        again("cold")
        server.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models-dir", default="models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--option", action="append", default=[], help="for the server (and run)")
    commands = parser.add_subparsers(required=True)
    for name, work in [("cost", cost), ("batch", batch), ("follow", follow)]:
        command = commands.add_parser(name)
        command.add_argument("model")
        command.set_defaults(work=work)
        if name == "batch":
            command.add_argument("memory")
            command.add_argument("--widths", type=int, nargs="+", default=[1, 2, 4, 8])
        if name == "follow":
            command.add_argument("other")
            command.add_argument("--repeat", type=int, default=2)
    args = parser.parse_args()
    args.work(args)


if __name__ == "__main__":
    main()
