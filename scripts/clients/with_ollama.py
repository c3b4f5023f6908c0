"""The official Python client of Ollama."""

import asyncio
import functools
import json
import time

import httpx
import ollama
from pydantic import BaseModel

from harness import DRAFT, ENDLESS, MODEL, STORY, Suite, model_file, raises

suite = Suite("ollama")
check = suite.check

GREEDY = {"temperature": 0, "num_predict": 16}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a town",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string"}},
            "required": ["town"],
        },
    },
}


def client(server):
    return client_at(server.url)


@functools.cache
def client_at(url):
    """One for each server: to make one takes longer than most answers."""
    return ollama.Client(host=url)


def user(content):
    return {"role": "user", "content": content}


class Animal(BaseModel):
    name: str
    legs: int
    is_tame: bool


@check("list names both models with their details")
def list_models(server):
    models = {m.model: m for m in client(server).list().models}
    demo = models[f"{MODEL}:latest"]
    assert demo.size == 33672576 and len(demo.digest) == 64, demo
    assert demo.details.format == "gguf" and demo.details.family == "qwen3moe", demo.details
    assert demo.details.quantization_level == "Q4_K_M", demo.details
    assert demo.modified_at.year >= 2024


@check("show tells template, capabilities and the model's metadata")
def show(server):
    shown = client(server).show(MODEL)
    assert {"completion", "tools"} <= set(shown.capabilities), shown.capabilities
    assert "thinking" not in shown.capabilities
    assert shown.modelinfo["general.architecture"] == "qwen3moe"
    assert shown.modelinfo["qwen3moe.context_length"] == 2048
    assert shown.template and shown.modelfile.startswith("# "), shown.modelfile
    assert shown.details.parameter_size == "54.07M"


@check("chat answers, with counts and times")
def chat(server):
    answer = client(server).chat(MODEL, [user("Tell me of a fox.")], options=GREEDY)
    assert answer.message.role == "assistant" and answer.message.content
    assert answer.done and answer.done_reason in ("stop", "length")
    assert 0 < answer.eval_count <= 16 and answer.prompt_eval_count > 5
    assert answer.total_duration >= answer.eval_duration > 0
    assert answer.prompt_eval_duration > 0 and answer.load_duration >= 0
    assert answer.message.tool_calls is None and answer.message.thinking is None


@check("a streamed chat says the same as one that is not")
def chat_stream(server):
    messages = [user("Tell me of a fox.")]
    whole = client(server).chat(MODEL, messages, options=GREEDY)
    parts = list(client(server).chat(MODEL, messages, options=GREEDY, stream=True))
    assert "".join(p.message.content for p in parts) == whole.message.content
    assert len(parts) > 3 and [p.done for p in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count
    assert parts[-1].done_reason == whole.done_reason
    assert parts[0].eval_count is None


@check("the number of tokens is obeyed")
def num_predict(server):
    answer = client(server).generate(
        MODEL, STORY, raw=True, options={"temperature": 0, "num_predict": 7}
    )
    assert answer.eval_count == 7 and answer.done_reason == "length", answer


@check("generate answers, streamed and not, with a system prompt")
def generate(server):
    ask = dict(model=MODEL, prompt="Tell me of a bear.", system="You are a poet.", options=GREEDY)
    whole = client(server).generate(**ask)
    parts = list(client(server).generate(**ask, stream=True))
    assert whole.response and "".join(p.response for p in parts) == whole.response
    assert parts[-1].done and parts[-1].prompt_eval_count > 10
    plain = client(server).generate(MODEL, "Tell me of a bear.", options=GREEDY)
    assert plain.prompt_eval_count + plain.eval_count > 0
    assert whole.context and all(isinstance(t, int) for t in whole.context)


@check("generate goes on from the context of the answer before")
def generate_context(server):
    first = client(server).generate(MODEL, "Tell me of a bear.", options=GREEDY)
    second = client(server).generate(MODEL, "And then?", context=first.context, options=GREEDY)
    assert list(second.context[: len(first.context)]) == list(first.context)


@check("raw generate takes the prompt as it is")
def generate_raw(server):
    raw = client(server).generate(MODEL, "Once upon a time", raw=True, options=GREEDY)
    templated = client(server).generate(MODEL, "Once upon a time", options=GREEDY)
    assert raw.prompt_eval_count < templated.prompt_eval_count
    assert raw.response != templated.response


@check("an empty prompt loads the model and says nothing")
def generate_empty(server):
    answer = client(server).generate(MODEL)
    assert answer.done and answer.response == "" and answer.done_reason == "load", answer


@check("an answer that was begun is gone on with")
def prefill(server):
    begun = "Once upon a time there was"
    messages = [user("Tell me of a fox."), {"role": "assistant", "content": begun}]
    answer = client(server).chat(MODEL, messages, options=GREEDY)
    prompt = f"<|im_start|>user\nTell me of a fox.<|im_end|>\n<|im_start|>assistant\n{begun}"
    raw = client(server).generate(MODEL, prompt, raw=True, options=GREEDY)
    assert answer.prompt_eval_count == raw.prompt_eval_count
    assert answer.message.content == raw.response


@check("several turns: each reads only what is new")
def turns(server):
    messages, counts = [], []
    for text in ["Tell me of a fox.", "And what did the bear say?", "How does it end?"]:
        messages.append(user(text))
        answer = client(server).chat(MODEL, messages, options=GREEDY)
        messages.append(answer.message)
        counts.append(answer.prompt_eval_count)
    assert counts == sorted(counts) and counts[2] > counts[0] + 16, counts


@check("a prompt beyond the context is cut, or refused in words that clients look for")
def too_long(server):
    messages = [user(STORY * 60), user("Hello")]
    ours = client(server)
    assert ours.chat(MODEL, messages, options=GREEDY).prompt_eval_count <= 2048
    assert ours.generate(MODEL, STORY * 60, options=GREEDY).prompt_eval_count <= 2048
    # The client has no argument for `truncate`.
    for path, body in (("chat", {"messages": messages}), ("generate", {"prompt": STORY * 60})):
        answer = ours._client.post(f"/api/{path}", json={"model": MODEL, "truncate": False, **body})
        assert answer.status_code == 400 and "prompt is too long" in answer.json()["error"], (
            answer.text
        )


@check("a stop sequence ends the answer before it")
def stop(server):
    options = {"temperature": 0, "num_predict": 40}
    whole = client(server).generate(MODEL, STORY, raw=True, options=options)
    word = whole.response.split()[5]
    stopped = client(server).generate(MODEL, STORY, raw=True, options={**options, "stop": [word]})
    assert whole.response.startswith(stopped.response) and word not in stopped.response, (
        stopped.response
    )
    assert stopped.done_reason == "stop" and stopped.eval_count < whole.eval_count
    parts = list(
        client(server).generate(
            MODEL, STORY, raw=True, stream=True, options={**options, "stop": [word]}
        )
    )
    assert "".join(p.response for p in parts) == stopped.response


@check("the seed repeats an answer, another seed does not")
def seed(server):
    def once(seed):
        options = {"temperature": 1.5, "seed": seed, "num_predict": 24}
        return client(server).generate(MODEL, STORY, raw=True, options=options).response

    assert once(1) == once(1)
    assert len({once(seed) for seed in range(2, 6)}) > 1


@check("typed options and every sampling option are accepted")
def options(server):
    options = ollama.Options(
        num_ctx=1024, num_keep=4, seed=3, num_predict=8, top_k=20, top_p=0.9, temperature=0.7,
        repeat_last_n=32, repeat_penalty=1.1, presence_penalty=0.1, frequency_penalty=0.1,
        tfs_z=1.0, typical_p=0.9, mirostat=0, num_thread=1, num_gpu=0, stop=["\n\n\n"],
    )  # fmt: skip
    answer = client(server).chat(MODEL, [user("Hello")], options=options)
    assert 0 < answer.eval_count <= 8


@check("a high repeat penalty changes the answer")
def repeat_penalty(server):
    prompt = "the fox the fox the fox the fox the fox the fox the"
    plain = client(server).generate(
        MODEL, prompt, raw=True, options=GREEDY | {"repeat_penalty": 1.0}
    )
    punished = client(server).generate(
        MODEL, prompt, raw=True, options=GREEDY | {"repeat_penalty": 3.0}
    )
    assert plain.response != punished.response


@check("format=json is JSON")
def format_json(server):
    answer = client(server).chat(
        MODEL,
        [user("Describe a fox as JSON.")],
        format="json",
        options={"temperature": 0, "num_predict": 300},
    )
    assert isinstance(json.loads(answer.message.content), dict), answer.message.content


@check("format=schema of pydantic can be read back by it, streamed too")
def format_schema(server):
    ask = dict(
        model=MODEL,
        messages=[user("Describe a fox.")],
        format=Animal.model_json_schema(),
        options={"temperature": 0, "num_predict": 300},
    )
    whole = client(server).chat(**ask)
    animal = Animal.model_validate_json(whole.message.content)
    assert animal.legs is not None
    parts = client(server).chat(**ask, stream=True)
    assert Animal.model_validate_json("".join(p.message.content for p in parts)) == animal
    generated = client(server).generate(
        MODEL, "Describe a fox.", format=Animal.model_json_schema(), options=ask["options"]
    )
    Animal.model_validate_json(generated.response)


@check("tools are shown to the model, as a dict and as a function")
def tools(server):
    def get_weather(town: str) -> str:
        """The weather of a town.

        Args:
          town: Its name
        """
        return town

    bare = client(server).chat(MODEL, [user("How is the weather?")], options=GREEDY)
    for tool in (WEATHER, get_weather):
        answer = client(server).chat(
            MODEL, [user("How is the weather?")], tools=[tool], options=GREEDY
        )
        assert answer.prompt_eval_count > bare.prompt_eval_count + 30


@check("a call and its result can be sent back")
def tool_result(server):
    messages = [
        user("How is the weather in Rome?"),
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "get_weather", "arguments": {"town": "Rome"}}}],
        },
        {"role": "tool", "tool_name": "get_weather", "content": "22 degrees, no clouds at all"},
    ]
    asked = client(server).chat(MODEL, messages[:1], tools=[WEATHER], options=GREEDY)
    answer = client(server).chat(MODEL, messages, tools=[WEATHER], options=GREEDY)
    assert (
        answer.prompt_eval_count > asked.prompt_eval_count + 15
        and answer.message.role == "assistant"
    )


@check("embed gives unit vectors, one for each input, the same every time")
def embed(server):
    one = client(server).embed(MODEL, "a fox in the wood")
    assert len(one.embeddings) == 1 and len(one.embeddings[0]) == 256
    assert abs(sum(x * x for x in one.embeddings[0]) - 1) < 1e-3
    assert one.prompt_eval_count > 2 and one.total_duration > 0
    many = client(server).embed(MODEL, ["a fox in the wood", "the price of corn"])
    assert len(many.embeddings) == 2
    assert distance(many.embeddings[0], one.embeddings[0]) < 1e-3
    assert distance(many.embeddings[1], one.embeddings[0]) > 1e-2
    short = client(server).embed(MODEL, "a fox in the wood", dimensions=64)
    assert (
        len(short.embeddings[0]) == 64 and abs(sum(x * x for x in short.embeddings[0]) - 1) < 1e-3
    )


def distance(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


@check("embed cuts what is too long, or refuses it")
def embed_truncate(server):
    text = STORY * 60
    assert client(server).embed(MODEL, text).prompt_eval_count <= 2048
    with raises(ollama.ResponseError, status_code=400):
        client(server).embed(MODEL, text, truncate=False)


@check("embeddings, the older call, gives one vector")
def embeddings(server):
    assert len(client(server).embeddings(MODEL, "a fox in the wood").embedding) == 256


@check("ps shows the model that is loaded")
def ps(server):
    client(server).generate(MODEL, "Hello", options={"num_predict": 1}, keep_alive="7m")
    models = {m.model: m for m in client(server).ps().models}
    loaded = models[f"{MODEL}:latest"]
    assert 0 <= loaded.size_vram <= loaded.size > 0 and loaded.context_length >= 1024
    left = loaded.expires_at.timestamp() - time.time()
    assert 300 < left < 430, left


@check("keep_alive 0 unloads, by an empty prompt and after an answer")
def keep_alive(server):
    answer = client(server).generate(MODEL, keep_alive=0)
    assert answer.done_reason == "unload", answer
    assert not is_loaded(server)
    client(server).chat(MODEL, [user("Hello")], options={"num_predict": 1}, keep_alive=0)
    until = time.monotonic() + 5
    while is_loaded(server):
        assert time.monotonic() < until, "it is still loaded"
        time.sleep(0.05)
    client(server).generate(MODEL, keep_alive=-1)
    assert is_loaded(server)


def is_loaded(server):
    return f"{MODEL}:latest" in [m.model for m in client(server).ps().models]


@check("copy, create from, show, chat, delete")
def lifecycle(server):
    ours = client(server)
    assert ours.copy(MODEL, "my-copy").status == "success"
    assert "my-copy:latest" in names(ours)
    parts = list(
        ours.create(
            "my-poet:v1",
            from_=MODEL,
            system="You are a poet.",
            parameters={"temperature": 0, "num_predict": 5},
            stream=True,
        )
    )
    assert parts[-1].status == "success", parts
    shown = ours.show("my-poet:v1")
    assert "You are a poet." in shown.modelfile and "num_predict" in shown.parameters
    answer = ours.chat("my-poet:v1", [user("Tell me of a fox.")])
    assert answer.eval_count <= 5 and answer.model == "my-poet:v1"
    bare = ours.chat("my-copy", [user("Tell me of a fox.")], options={"num_predict": 1})
    assert answer.prompt_eval_count > bare.prompt_eval_count, "the system prompt is not used"
    for name in ("my-copy", "my-poet:v1"):
        assert ours.delete(name).status == "success"
    assert names(ours) == {f"{MODEL}:latest", f"{DRAFT}:latest"}, names(ours)


@check("a model is made of a file that was uploaded")
def blob(server):
    ours = client(server)
    digest = ours.create_blob(model_file(DRAFT))
    assert ours.create("my-upload", files={"draft.gguf": digest}).status == "success"
    assert ours.show("my-upload").details.family == "qwen3"
    uploaded = ours.chat("my-upload", [user("Hello")], options=GREEDY)
    assert (
        uploaded.message.content
        == ours.chat(DRAFT, [user("Hello")], options=GREEDY).message.content
    )
    ours.delete("my-upload")
    assert "my-upload:latest" not in names(ours)


def names(ours):
    return {m.model for m in ours.list().models}


@check("an answer that is no longer read is no longer computed")
def cancel(server):
    ours = client(server)
    stream = ours.generate(MODEL, STORY, raw=True, stream=True, format=ENDLESS)
    for _ in range(3):
        next(stream)
    assert server.metric("hypura_answers_active") == 1
    stream.close()
    start = time.monotonic()
    assert ours.generate(MODEL, "Hello", options={"num_predict": 1}).done
    server.wait_until_idle()
    assert time.monotonic() - start < 10


@check("an answer that no one waits for is no longer computed, streamed or not")
def gave_up(server):
    hurried = ollama.Client(host=server.url, timeout=0.5)
    with raises(httpx.TimeoutException):
        hurried.generate(MODEL, STORY, raw=True, format=ENDLESS)
    server.wait_until_idle(seconds=2)


@check("a model that is not there is a 404")
def not_found(server):
    for call in (
        lambda: client(server).chat("no-such-model", [user("Hello")]),
        lambda: client(server).generate("no-such-model", "Hello"),
        lambda: client(server).embed("no-such-model", "Hello"),
        lambda: client(server).show("no-such-model"),
        lambda: client(server).copy("no-such-model", "other"),
        lambda: client(server).delete("no-such-model"),
        lambda: list(client(server).chat("no-such-model", [user("Hello")], stream=True)),
    ):
        with raises(ollama.ResponseError, status_code=404):
            call()


@check("a request that makes no sense is a 400")
def bad_request(server):
    for call in (
        lambda: client(server).chat(MODEL, [user("Hello")], options={"temperature": "hot"}),
        lambda: client(server).chat(MODEL, [user("Hello")], format={"type": "no-such-type"}),
        lambda: client(server).chat(
            MODEL, [{"role": "user", "content": "Look", "images": [b"\x89PNG"]}]
        ),
        lambda: client(server).chat(MODEL, [user("Hello")], think=True),
        lambda: client(server).create("my/bad name!", from_=MODEL),
    ):
        with raises(ollama.ResponseError, status_code=400):
            call()


@check("think=False is fine for a model that does not think")
def think_false(server):
    answer = client(server).chat(MODEL, [user("Hello")], think=False, options=GREEDY)
    assert answer.message.content and answer.message.thinking is None


@check("logprobs come with the answer")
def logprobs(server):
    answer = client(server).chat(
        MODEL, [user("Hello")], logprobs=True, top_logprobs=3, options=GREEDY
    )
    assert len(answer.logprobs) == answer.eval_count
    assert "".join(p.token for p in answer.logprobs).strip() == answer.message.content.strip()
    first = answer.logprobs[0]
    assert len(first.top_logprobs) == 3 and first.logprob <= 0
    assert first.top_logprobs[0].token == first.token


@check("the asynchronous client answers two at once")
def asynchronous(server):
    async def both():
        ours = ollama.AsyncClient(host=server.url)
        asks = [
            ours.chat(MODEL, [user(f"Tell me of a {who}.")], options=GREEDY)
            for who in ("fox", "bear")
        ]
        return await asyncio.gather(*asks)

    together = asyncio.run(both())
    alone = [
        client(server).chat(MODEL, [user(f"Tell me of a {who}.")], options=GREEDY)
        for who in ("fox", "bear")
    ]
    assert [a.message.content for a in together] == [a.message.content for a in alone]
