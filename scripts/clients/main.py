"""Runs the checks against one server; scripts/test-clients.sh calls it and tells of the options."""

import argparse
import importlib
import sys

from harness import Server, Tally

SUITES = [
    "with_ollama",
    "with_openai",
    "with_responses",
    "with_anthropic",
    "with_langchain",
    "with_followups",
]
MORE_SUITES = ["with_llm"]


def main():
    parser = argparse.ArgumentParser(prog="scripts/test-clients.sh")
    parser.add_argument(
        "--all", action="store_true", help="also llm, the clients for Node, and OpenClaw, from npm"
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only checks whose line contains this"
    )
    options = parser.parse_args()

    tally = Tally()
    # One thread: the cores are shared, and threads that spin wait for each other there.
    server = Server("--threads", "1")
    try:
        for name in SUITES + (MORE_SUITES if options.all else []):
            importlib.import_module(name).suite.run(server, options.only, tally)
        if options.all:
            import node

            for client in node.CLIENTS:
                if options.only in client.script:
                    client.run(server, tally)
        tally.add("server: it ends in good order", server, ends)
    finally:
        server.close()
        tally.print_total()
    sys.exit(tally.failed > 0)


def ends(server):
    status = server.stop()
    assert status == 0, f"exit status {status}\n{server.log_tail()}"
    panics = [line for line in server.log if "panicked" in line]
    assert not panics, panics


main()
