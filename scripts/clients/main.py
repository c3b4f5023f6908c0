"""Runs the clients' checks: main.py [--only TEXT]."""

import argparse
import importlib
import sys

from harness import Server, Tally

SUITES = ["with_ollama", "with_openai", "with_responses", "with_anthropic", "with_langchain", "with_followups"]

parser = argparse.ArgumentParser()
parser.add_argument("--only", default="", help="checks whose line contains this")
arguments = parser.parse_args()

tally = Tally()
server = Server("--threads", "1", "--log-format", "text")
try:
    for name in SUITES:
        importlib.import_module(name).suite.run(server, arguments.only, tally)
finally:
    server.close()
    tally.print_total()
sys.exit(tally.failed > 0)
