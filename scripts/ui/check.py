#!/usr/bin/env python3
"""Drives Hypura's page in a headless Chromium. scripts/test-ui.sh makes sure that there is one."""

import argparse
import pathlib
import sys
import time
import traceback

import browser
import mock
import scenes

# Curves of this many samples are worth a picture.
PICTURE_SAMPLES = 15
PICTURE_S_MAX = 60


def main():
    args = arguments()
    path = browser.find()
    if path is None:
        sys.exit("ui: there is no Chromium; scripts/test-ui.sh installs it on Debian, CHROMIUM names one elsewhere")
    chromium = browser.Browser(path)
    server = None if args.base else mock.Mock()
    base = args.base or server.base
    try:
        runs = [(scene, base) for scene in scenes.ANYWHERE]
        if not args.real:
            runs += [(scene, server) for scene in scenes.SCRIPTED]
        runs = [run for run in runs if not args.only or run[0].__name__ in args.only]
        failures = sum(not passes(chromium, *run) for run in runs)
        if args.screenshot:
            take_pictures(chromium, base, args.screenshot)
    finally:
        chromium.close()
        if server:
            server.close()
    if failures:
        sys.exit(f"ui: {failures} of {len(runs)} scenes failed")
    print(f"ui: ok ({len(runs)} scenes)", file=sys.stderr)


def arguments():
    parser = argparse.ArgumentParser(prog="test-ui.sh", description="check Hypura's page in a headless browser")
    parser.add_argument("base", nargs="?", help="a server such as http://127.0.0.1:11434; default: a mock of ours")
    parser.add_argument("--real", action="store_true", help="the server is a real one: only what holds anywhere")
    parser.add_argument("--screenshot", type=pathlib.Path, metavar="FILE.png", help="also write FILE.png and FILE-dark.png")
    parser.add_argument("--only", action="append", metavar="SCENE", help="run this scene alone; may be repeated")
    args = parser.parse_args()
    if args.real != bool(args.base):
        parser.error("a server's address and --real go together: scripted scenes need the mock")
    args.base = args.base and args.base.rstrip("/").removesuffix("/ui")
    return args


def passes(chromium, scene, server):
    page = chromium.page()
    try:
        scene(page, server)
        return True
    except Exception as error:  # A scene may fail in any way; the others are run all the same.
        print(f"ui: {scene.__name__} failed: {error}", file=sys.stderr)
        if not isinstance(error, AssertionError):
            traceback.print_exc()
        return False
    finally:
        page.close()


def take_pictures(chromium, base, path):
    """The page with an answer and a while of curves, light and dark."""
    page = chromium.page(1280, 800)
    page.emulate(prefers_color_scheme="light")
    scenes.open_page(page, base)
    scenes.send(page, scenes.QUESTION)
    scenes.answered(page)
    end = time.monotonic() + PICTURE_S_MAX
    while sum(url.endswith("/ui/status") for url in page.requests) < PICTURE_SAMPLES and time.monotonic() < end:
        time.sleep(0.1)
    page.js("document.activeElement.blur()")
    page.screenshot(path)
    page.emulate(prefers_color_scheme="dark")
    page.until("matchMedia('(prefers-color-scheme: dark)').matches", "dark mode is on")
    page.screenshot(path.with_stem(f"{path.stem}-dark"))
    page.close()


if __name__ == "__main__":
    main()
