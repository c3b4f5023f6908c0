"""The `llm` command, through its plugin for Ollama and through its OpenAI-compatible models."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import MODEL, Suite, environment

suite = Suite("llm")
check = suite.check

MODEL_NAME = f"ollama/{MODEL}"
COMMAND_SECONDS = 50
QUESTION = "Tell me of a fox."

# Its settings and its log of conversations; main.py ends before this is removed.
FOLDER = tempfile.TemporaryDirectory(prefix="llm-")


def llm(server, *arguments, user_path=FOLDER.name):
    """What the command prints."""
    command = Path(sys.executable).with_name("llm")
    env = environment(OLLAMA_HOST=server.url, LLM_USER_PATH=str(user_path))
    run = subprocess.run(
        [command, *arguments],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert run.returncode == 0, run.stderr[-500:]
    return run.stdout


@check("models of the server are listed")
def models(server):
    assert f"Ollama: {MODEL_NAME}:latest" in llm(server, "models"), llm(server, "models")


@check("a prompt is answered, streamed or not")
def prompt(server):
    ask = ("-m", MODEL_NAME, "-o", "temperature", "0", "-o", "num_predict", "16", QUESTION)
    said = llm(server, *ask)
    assert said.strip() and llm(server, "--no-stream", *ask) == said


@check("a conversation is continued")
def continued(server):
    llm(server, "-m", MODEL_NAME, "-o", "num_predict", "16", QUESTION)
    llm(server, "-c", "-m", MODEL_NAME, "-o", "num_predict", "16", "And then?")
    last = json.loads(llm(server, "logs", "list", "-n", "2", "--json"))
    assert (
        len({entry["conversation_id"] for entry in last}) == 1 and last[-1]["prompt"] == "And then?"
    ), last
    assert last[-1]["input_tokens"] > last[0]["input_tokens"]


@check("a schema is followed")
def schema(server):
    said = llm(
        server,
        "-m",
        MODEL_NAME,
        "-o",
        "temperature",
        "0",
        "--schema",
        "name, legs int",
        "Describe a fox.",
    )
    animal = json.loads(said)
    assert set(animal) == {"name", "legs"} and isinstance(animal["legs"], int), said


@check("OpenAI-compatible models of extra-openai-models.yaml answer")
def openai_compatible(server):
    with tempfile.TemporaryDirectory(prefix="llm-") as folder:
        # JSON is YAML.
        entry = {
            "model_id": "demo",
            "model_name": MODEL,
            "api_base": f"{server.url}/v1",
            "supports_schema": True,
        }
        Path(folder, "extra-openai-models.yaml").write_text(json.dumps([entry]))
        ask = ("-m", "demo", "-o", "temperature", "0", "-o", "max_tokens", "16", QUESTION)
        said = llm(server, *ask, user_path=folder)
        assert said.strip() and llm(server, "--no-stream", *ask, user_path=folder) == said
        typed = llm(
            server,
            "-m",
            "demo",
            "-o",
            "temperature",
            "0",
            "--schema",
            "name, legs int",
            QUESTION,
            user_path=folder,
        )
        assert set(json.loads(typed)) == {"name", "legs"}, typed
