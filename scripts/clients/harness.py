"""Checks, and what runs them: one after another, each bounded in time, a line for each."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
import traceback
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = "demo-moe-54m-q4_k_m"
DRAFT = "demo-draft-3m-q8_0"

CHECK_SECONDS = 60
START_SECONDS = 30
STOP_SECONDS = 40
LOG_LINES = 40

STORY = (
    "Once upon a time there was a little fox who lived at the edge of a great dark wood with his "
    "mother and three brothers. Every morning he went down to the brook to drink, and every "
    "evening he came home by the old stone bridge, where the miller kept his geese. "
)

# An answer that has to go on for long: the grammar lets it end no sooner.
ENDLESS = {"type": "array", "items": {"enum": ["the fox"]}, "minItems": 400}


class TooLate(Exception):
    """A check that took longer than it may."""


class Suite:
    """Checks in the order of their definition."""

    def __init__(self, title):
        self.title = title
        self.checks = []

    def check(self, name, seconds=CHECK_SECONDS):
        """Registers a function that takes a server and fails by any exception."""

        def register(function):
            self.checks.append((name, seconds, function))
            return function

        return register

    def run(self, server, only, tally):
        """Runs the checks whose line contains `only`; counts and prints each."""
        for name, seconds, function in self.checks:
            line = f"{self.title}: {name}"
            if only in line:
                tally.add(line, server, bounded(seconds, function))


class Tally:
    """How many checks passed and failed."""

    def __init__(self):
        self.passed = 0
        self.failed = 0

    def add(self, line, server, body):
        """Calls the body with the server; counts and prints how it went."""
        start = time.monotonic()
        try:
            body(server)
        except Exception as error:
            self.failed += 1
            print(
                f"FAILED {line} ({time.monotonic() - start:.1f} s): {describe(error)}", flush=True
            )
            if isinstance(error, TooLate) or not server.is_alive():
                # A server that hangs or died would fail all that follows.
                print(server.log_tail(), flush=True)
                server.restart()
        else:
            self.passed += 1
            print(f"ok     {line} ({time.monotonic() - start:.1f} s)", flush=True)

    def fail(self, line):
        """Counts a failure outside of a check."""
        self.failed += 1
        print(f"FAILED {line}", flush=True)

    def print_total(self):
        print(f"{self.passed} passed, {self.failed} failed", flush=True)


def bounded(seconds, function):
    """The function, interrupted with TooLate after so many seconds."""

    def interrupt(_signal, _frame):
        raise TooLate(f"not done after {seconds} s")

    def call(server):
        previous = signal.signal(signal.SIGALRM, interrupt)
        signal.alarm(seconds)
        try:
            function(server)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)

    return call


def describe(error):
    """The error, and the line of the check that raised it."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if "/scripts/clients/with_" in f.filename
    ]
    where = (
        f" [{Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].line}]"
        if frames
        else ""
    )
    return f"{type(error).__name__}: {str(error)[:600]}{where}"


@contextlib.contextmanager
def raises(kind, **expected):
    """The block must raise `kind`, with attributes as in `expected`."""
    try:
        yield
    except kind as error:
        for name, value in expected.items():
            got = getattr(error, name)
            assert got == value, f"{name} is {got!r} instead of {value!r}: {error}"
    else:
        raise AssertionError(f"no {kind.__name__} was raised")


def models_folder():
    return Path(os.environ.get("HYPURA_TEST_MODELS", ROOT / "models"))


def model_file(name):
    return models_folder() / f"{name}.gguf"


class Server:
    """`hypura serve` with a folder of its own, on a port that was free."""

    def __init__(self, *arguments):
        self.arguments = arguments
        self.home = tempfile.TemporaryDirectory(prefix="hypura-clients-")
        self.log = []
        self.start()

    def start(self):
        binary = os.environ.get("HYPURA", ROOT / "target/release/hypura")
        self.process = subprocess.Popen(
            [binary, "serve", "--port", "0", "--models-dir", models_folder(), *self.arguments],
            env=environment(HYPURA_HOME=self.home.name),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        ready = threading.Event()
        self.url = None
        threading.Thread(
            target=self._read_log, args=(self.process.stderr, ready), daemon=True
        ).start()
        if not ready.wait(START_SECONDS) or self.url is None:
            raise RuntimeError(f"the server did not start\n{self.log_tail()}")

    def _read_log(self, stream, ready):
        for line in stream:
            self.log.append(line.rstrip())
            if self.url is None and (match := re.search(r"serving at (http://\S+?),", line)):
                self.url = match.group(1)
                ready.set()
        ready.set()

    def is_alive(self):
        return self.process.poll() is None

    def stop(self):
        """Asks it to end; kills it if it does not. Returns its exit status."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def restart(self):
        """Starts it again on the same folder."""
        if self.is_alive():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
        self.start()

    def close(self):
        if self.is_alive():
            self.stop()
        self.home.cleanup()

    def log_tail(self):
        return "\n".join(f"       | {line}" for line in self.log[-LOG_LINES:])

    def metric(self, name):
        """The sum of a metric's series."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        values = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        assert values, f"there is no metric {name}"
        return sum(map(float, values))

    def wait_until_idle(self, seconds=10):
        """Waits until no model answers and no one waits for one."""
        until = time.monotonic() + seconds
        while self.metric("hypura_answers_active") + self.metric("hypura_answers_waiting") > 0:
            assert time.monotonic() < until, f"the server still computes after {seconds} s"
            time.sleep(0.05)


def environment(**extra):
    """The environment, less what would lead clients elsewhere."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("OPENAI_", "ANTHROPIC_", "OLLAMA_", "HYPURA_"))
    }
    return {**kept, **extra}
