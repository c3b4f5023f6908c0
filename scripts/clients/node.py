"""The clients that run in Node: installs them from npm, and counts the lines of their checks."""

import os
import re
import subprocess

from harness import ROOT, environment

HERE = ROOT / "scripts/clients"
INSTALL_SECONDS = 600
RUN_SECONDS = 300


class Client:
    """A script with checks, and the packages that it needs, installed in this order."""

    def __init__(self, script, *packages):
        self.script = script
        self.packages = packages
        self.folder = ROOT / "target/clients" / script.removesuffix(".mjs")

    def run(self, server, tally):
        """Installs and runs it; adds the checks to the tally."""
        try:
            self.install()
            self.check(server, tally)
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stdout", None) or ""
            tally.fail(f"{self.script}: {error}\n{output[-2000:]}")

    def install(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        # npm installs into the nearest folder that has one of these.
        (self.folder / "package.json").touch()
        if (self.folder / "package.json").stat().st_size == 0:
            (self.folder / "package.json").write_text('{"private": true}\n')
        for package in self.packages:
            if not self.has(package):
                command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", package]
                self.call(command, INSTALL_SECONDS).check_returncode()

    def has(self, package):
        name, _, version = package.rpartition("@")
        manifest = self.folder / "node_modules" / name / "package.json"
        return manifest.exists() and f'"version": "{version}"' in manifest.read_text()

    def check(self, server, tally):
        # A script finds packages beside itself.
        for script in ("harness.mjs", self.script):
            (self.folder / script).write_bytes((HERE / script).read_bytes())
        run = self.call(["node", self.script], RUN_SECONDS, HYPURA_TEST_URL=server.url)
        print(run.stdout, end="", flush=True)
        tally.passed += len(re.findall(r"^ok ", run.stdout, re.MULTILINE))
        failed = len(re.findall(r"^FAILED ", run.stdout, re.MULTILINE))
        tally.failed += failed
        if (run.returncode != 0) != (failed > 0):
            tally.fail(f"{self.script}: node ended with {run.returncode}")

    def call(self, command, seconds, **extra):
        # A Node that was installed as a package goes before the machine's.
        path = f"{self.folder / 'node_modules/node/bin'}:{os.environ['PATH']}"
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment(PATH=path, **extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )


CLIENTS = [
    Client("with_ollama.mjs", "ollama@0.6.4"),
    Client("with_openai.mjs", "openai@6.49.0"),
    # It asks for a newer Node than most machines have, and refuses to be installed by another.
    Client("with_openclaw.mjs", "node@24.21.0", "openclaw@2026.9.6"),
]
