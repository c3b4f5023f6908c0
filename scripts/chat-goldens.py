#!/usr/bin/env python3
"""What Python's Jinja2 makes of chat templates, to hold Hypura's renderer against.

chat-goldens.py            makes crates/chat/tests/goldens again
chat-goldens.py FOLDER     renders the *.jinja files of FOLDER with Jinja2 and with Hypura, and
                           reports where they differ

Needs `pip install jinja2`; comparing needs cargo too.
"""

import datetime
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TESTS = REPOSITORY / "crates" / "chat" / "tests"
NOW = datetime.datetime(2025, 3, 7, 9, 5, 3)


class Generation(jinja2.ext.Extension):
    """Hugging Face's {% generation %}: a scope that writes what is in it."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("written")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def written(self, caller):
        return caller()


def environment():
    """The environment of transformers' `apply_chat_template`."""
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )

    def to_json(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env.filters["tojson"] = to_json
    env.filters["from_json"] = json.loads  # llama.cpp's
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def render(source, names):
    """The text, and None; or None, and the error."""
    try:
        template = environment().from_string(source)
        return template.render(bos_token="<s>", eos_token="</s>", **names), None
    except Exception as error:  # whatever a template runs into, it is a refusal
        return None, f"{type(error).__name__}: {error}"


def conversations():
    paths = sorted((TESTS / "conversations").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def remake():
    """Writes a file per template: the text by conversation, or null where Jinja2 refuses."""
    shutil.rmtree(TESTS / "goldens", ignore_errors=True)
    (TESTS / "goldens").mkdir()
    for path in sorted((TESTS / "templates").glob("*.jinja")):
        source = path.read_bytes().decode()
        texts = {name: render(source, names)[0] for name, names in conversations().items()}
        golden = TESTS / "goldens" / f"{path.stem}.json"
        golden.write_text(json.dumps(texts, ensure_ascii=False, indent=1) + "\n")


def compare(folder):
    run = ["cargo", "run", "--quiet", "-p", "hypura-chat", "--example", "render", "--"]
    counts = {"same": 0, "both refuse": 0, "different": 0}
    with tempfile.TemporaryDirectory() as out:
        paths = [folder.resolve(), TESTS / "conversations", out]
        subprocess.run(run + [str(path) for path in paths], check=True, cwd=REPOSITORY)
        for path in sorted(folder.glob("*.jinja")):
            for name, names in conversations().items():
                text, error = render(path.read_bytes().decode(), names)
                ours = pathlib.Path(out) / path.stem / f"{name}.txt"
                refusal = ours.with_suffix(".error")
                refused = refusal.exists()
                ours = refusal.read_text() if refused else ours.read_bytes().decode()
                if text is None and refused:
                    counts["both refuse"] += 1
                elif text == ours and not refused:
                    counts["same"] += 1
                else:
                    counts["different"] += 1
                    print(f"{path.stem} / {name}\n  python {first(text or error, ours)}"
                          f"\n  hypura {first(ours, text or error)}")
    print(", ".join(f"{count} {what}" for what, count in counts.items()))
    return counts["different"] == 0


def first(text, other):
    """What `text` says from shortly before the first difference to `other`."""
    pairs = zip(text, other)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other)))
    return repr(text[max(0, at - 30) : at + 60])


if __name__ == "__main__":
    if len(sys.argv) == 1:
        remake()
    elif not compare(pathlib.Path(sys.argv[1])):
        sys.exit(1)
