"""The official Python client of OpenAI: models, chat, completions and embeddings."""

import base64
import functools
import json
import struct

import openai
from pydantic import BaseModel

from harness import ENDLESS, MODEL, STORY, Server, Suite, raises

suite = Suite("openai")
check = suite.check

GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 16}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a town",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "maxLength": 20}},
            "required": ["town"],
            "additionalProperties": False,
        },
    },
}


def client(server, api_key="none"):
    return client_at(server.url, api_key)


@functools.cache
def client_at(url, api_key):
    """One for each server: to make one takes longer than most answers."""
    return openai.OpenAI(base_url=f"{url}/v1", max_retries=0, api_key=api_key)


def user(content):
    return {"role": "user", "content": content}


class Animal(BaseModel):
    name: str
    legs: int
    is_tame: bool


@check("models are listed and retrieved")
def models(server):
    listed = {m.id: m for m in client(server).models.list()}
    assert MODEL in [name.removesuffix(":latest") for name in listed], listed
    one = client(server).models.retrieve(MODEL)
    assert (
        one.object == "model"
        and one.id.removesuffix(":latest") == MODEL
        and one.created > 1_700_000_000
    )


@check("chat answers, with usage")
def chat(server):
    answer = client(server).chat.completions.create(messages=[user("Tell me of a fox.")], **GREEDY)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-"), answer
    assert choice.message.role == "assistant" and choice.message.content and choice.index == 0
    assert choice.finish_reason in ("stop", "length") and choice.message.tool_calls is None
    assert 0 < answer.usage.completion_tokens <= 16 and answer.usage.prompt_tokens > 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@check("a streamed chat says the same as one that is not")
def chat_stream(server):
    ask = dict(messages=[user("Tell me of a fox.")], **GREEDY)
    whole = client(server).chat.completions.create(**ask)
    chunks = list(
        client(server).chat.completions.create(
            **ask, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({c.id for c in chunks}) == 1 and chunks[0].object == "chat.completion.chunk"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason and not any(reasons[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    without = list(client(server).chat.completions.create(**ask, stream=True))
    assert all(c.usage is None for c in without) and all(c.choices for c in without)


@check("the streaming helper gathers the answer")
def chat_helper(server):
    with client(server).chat.completions.stream(
        messages=[user("Tell me of a fox.")], **GREEDY
    ) as stream:
        deltas = [e.delta for e in stream if e.type == "content.delta"]
        final = stream.get_final_completion()
    assert len(deltas) > 3 and "".join(deltas) == final.choices[0].message.content


@check("n choices, whole and streamed")
def n(server):
    ask = dict(
        model=MODEL,
        messages=[user("Tell me of a fox.")],
        n=3,
        temperature=1.3,
        seed=5,
        max_tokens=12,
    )
    answer = client(server).chat.completions.create(**ask)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert len({c.message.content for c in answer.choices}) > 1, "all choices are the same"
    assert 12 < answer.usage.completion_tokens <= 36
    texts = ["", "", ""]
    for chunk in client(server).chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [c.message.content for c in answer.choices]


@check("a stop sequence ends the answer before it")
def stop(server):
    ask = dict(model=MODEL, prompt=STORY, temperature=0, max_tokens=40)
    whole = client(server).completions.create(**ask).choices[0]
    word = whole.text.split()[5]
    for stops in (word, ["no such text", word]):
        stopped = client(server).completions.create(**ask, stop=stops).choices[0]
        assert (
            whole.text.startswith(stopped.text)
            and word not in stopped.text
            and stopped.finish_reason == "stop"
        )


@check("logprobs are of the tokens that were said")
def logprobs(server):
    ask = dict(messages=[user("Tell me of a fox.")], logprobs=True, top_logprobs=3, **GREEDY)
    answer = client(server).chat.completions.create(**ask)
    content = answer.choices[0].logprobs.content
    assert "".join(t.token for t in content).strip() == answer.choices[0].message.content.strip()
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token, "greedy takes the likeliest"
        assert bytes(token.bytes).decode(errors="replace") == token.token
    streamed = []
    for chunk in client(server).chat.completions.create(**ask, stream=True):
        if chunk.choices and chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [t.token for t in streamed] == [t.token for t in content]
    none = client(server).chat.completions.create(messages=[user("Hello")], **GREEDY)
    assert none.choices[0].logprobs is None


@check("the seed repeats an answer, temperature 0 needs none")
def seed(server):
    def once(**extra):
        ask = dict(model=MODEL, messages=[user("Tell me of a fox.")], max_tokens=24)
        return client(server).chat.completions.create(**ask, **extra).choices[0].message.content

    assert once(temperature=0) == once(temperature=0)
    assert once(temperature=1.5, seed=1) == once(temperature=1.5, seed=1)
    assert len({once(temperature=1.5, seed=seed) for seed in range(2, 6)}) > 1


@check("fields that change nothing here are accepted")
def accepted(server):
    plain = client(server).chat.completions.create(messages=[user("Hello")], **GREEDY)
    same = client(server).chat.completions.create(
        messages=[user("Hello")],
        reasoning_effort="none",
        verbosity="low",
        service_tier="auto",
        store=False,
        metadata={"a": "b"},
        user="me",
        prompt_cache_key="key",
        response_format={"type": "text"},
        tool_choice="auto",
        tools=[],
        **GREEDY,
    )
    assert same.choices[0].message.content == plain.choices[0].message.content
    assert same._request_id and same._request_id != plain._request_id


@check("max_completion_tokens is obeyed")
def limits(server):
    ask = dict(model=MODEL, messages=[user("Tell me of a fox.")], temperature=0)
    answer = client(server).chat.completions.create(**ask, max_completion_tokens=5)
    assert answer.usage.completion_tokens == 5 and answer.choices[0].finish_reason == "length"
    with raises(openai.BadRequestError):
        client(server).chat.completions.create(**ask, max_completion_tokens=0)


@check("logit_bias forces a token")
def logit_bias(server):
    ask = dict(messages=[user("Tell me of a fox.")], logprobs=True, **{**GREEDY, "max_tokens": 4})
    free = client(server).chat.completions.create(**ask).choices[0]
    forced = client(server).chat.completions.create(**ask, logit_bias={"300": 100}).choices[0]
    assert len({t.token for t in free.logprobs.content}) > 1
    assert (
        len({t.token for t in forced.logprobs.content}) == 1 and len(forced.logprobs.content) == 4
    )


@check("messages of parts, system and developer are read")
def parts(server):
    plain = client(server).chat.completions.create(messages=[user("Tell me of a fox.")], **GREEDY)
    parts = client(server).chat.completions.create(
        messages=[user([{"type": "text", "text": "Tell me of a fox."}])], **GREEDY
    )
    assert parts.choices[0].message.content == plain.choices[0].message.content
    for role in ("system", "developer"):
        guided = client(server).chat.completions.create(
            messages=[{"role": role, "content": "You are a poet."}, user("Tell me of a fox.")],
            **GREEDY,
        )
        assert guided.usage.prompt_tokens > plain.usage.prompt_tokens, role


@check("parse reads a pydantic model")
def parse(server):
    answer = client(server).chat.completions.parse(
        model=MODEL,
        messages=[user("Describe a fox.")],
        response_format=Animal,
        temperature=0,
        max_tokens=300,
    )
    assert isinstance(answer.choices[0].message.parsed, Animal), answer


@check("json_object is JSON")
def json_object(server):
    answer = client(server).chat.completions.create(
        model=MODEL,
        messages=[user("Describe a fox.")],
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=300,
    )
    assert isinstance(json.loads(answer.choices[0].message.content), dict), answer


@check("tool_choice required calls a tool, by its schema")
def tool_required(server):
    ask = dict(
        model=MODEL,
        messages=[user("How is the weather in Rome?")],
        tools=[WEATHER],
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=200,
    )
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = client(server).chat.completions.create(**ask, tool_choice=choice).choices[0]
        call, *others = answer.message.tool_calls
        assert not others and answer.finish_reason in ("tool_calls", "stop"), answer
        assert call.type == "function" and call.id and call.function.name == "get_weather"
        assert list(json.loads(call.function.arguments)) == ["town"], call.function.arguments
    del ask["parallel_tool_calls"]
    none = client(server).chat.completions.create(**ask, tool_choice="none").choices[0]
    assert none.message.tool_calls is None and none.message.content


@check("a call is streamed in deltas that make the same call")
def tool_stream(server):
    ask = dict(
        model=MODEL,
        messages=[user("How is the weather in Rome?")],
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=200,
    )
    whole = client(server).chat.completions.create(**ask).choices[0]
    assert len(whole.message.tool_calls) == 1
    calls, reasons = {}, []
    for chunk in client(server).chat.completions.create(**ask, stream=True):
        choice = chunk.choices[0]
        reasons.append(choice.finish_reason)
        for delta in choice.delta.tool_calls or []:
            name, arguments = calls.get(delta.index, ("", ""))
            assert (delta.id is not None) == (name == ""), "the id comes with the first delta only"
            calls[delta.index] = (
                name + (delta.function.name or ""),
                arguments + (delta.function.arguments or ""),
            )
    function = whole.message.tool_calls[0].function
    assert calls == {0: (function.name, function.arguments)}, calls
    assert reasons[-1] == "tool_calls"
    with client(server).chat.completions.stream(**ask) as stream:
        gathered = stream.get_final_completion().choices[0].message.tool_calls[0].function
    assert gathered.arguments == function.arguments


@check("a call that is cut says nothing in words")
def tool_cut(server):
    ask = dict(
        model=MODEL, messages=[user("How is the weather in Rome?")], tools=[WEATHER], temperature=0
    )
    for limit in (3, 10, 20, 50, 200):
        answer = client(server).chat.completions.create(
            **ask, tool_choice="required", max_tokens=limit
        )
        choice = answer.choices[0]
        assert choice.finish_reason == "length" and not choice.message.content, (limit, choice)


@check("a tool's result goes back")
def tool_result(server):
    messages = [user("How is the weather in Rome?")]
    ask = dict(model=MODEL, tools=[WEATHER], temperature=0, max_tokens=100)
    asked = client(server).chat.completions.create(messages=messages, tool_choice="required", **ask)
    message = asked.choices[0].message
    messages.append(message)
    for call in message.tool_calls:
        messages.append(
            {"role": "tool", "tool_call_id": call.id, "content": "22 degrees, no clouds at all"}
        )
    answer = client(server).chat.completions.create(messages=messages, **ask)
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].finish_reason
    assert answer.usage.prompt_tokens > asked.usage.prompt_tokens + 15


@check("completions: one, several, streamed, with echo and logprobs")
def completions(server):
    ask = dict(model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=12)
    whole = client(server).completions.create(**ask)
    assert (
        whole.object == "text_completion"
        and whole.choices[0].text
        and whole.usage.completion_tokens <= 12
    )
    chunks = list(client(server).completions.create(**ask, stream=True))
    assert (
        "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
        and len(chunks) > 3
    )
    several = client(server).completions.create(
        **{**ask, "prompt": ["Once upon a time", "The bear"]}
    )
    assert [c.index for c in several.choices] == [0, 1] and several.choices[
        0
    ].text == whole.choices[0].text
    scored = client(server).completions.create(**ask, logprobs=2).choices[0].logprobs
    assert "".join(scored.tokens) == whole.choices[0].text and max(scored.token_logprobs) <= 0


@check("embeddings, as numbers and in base64, which is what the client asks for")
def embeddings(server):
    plain = client(server).embeddings.create(model=MODEL, input="a fox", encoding_format="float")
    default = client(server).embeddings.create(model=MODEL, input=["a fox", "the price of corn"])
    assert [e.index for e in default.data] == [0, 1] and len(plain.data[0].embedding) == 256
    for a, b in zip(plain.data[0].embedding, default.data[0].embedding, strict=True):
        assert abs(a - b) < 1e-3
    encoded = (
        client(server)
        .embeddings.create(model=MODEL, input="a fox", encoding_format="base64")
        .data[0]
        .embedding
    )
    numbers = struct.unpack("<256f", base64.b64decode(encoded))
    assert all(abs(a - b) < 1e-3 for a, b in zip(numbers, plain.data[0].embedding, strict=True))
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > 0
    short = client(server).embeddings.create(model=MODEL, input="a fox", dimensions=32)
    assert len(short.data[0].embedding) == 32


@check("a model that is not there is NotFoundError")
def not_found(server):
    for call in (
        lambda: client(server).chat.completions.create(
            model="no-such-model", messages=[user("Hello")]
        ),
        lambda: client(server).completions.create(model="no-such-model", prompt="Hello"),
        lambda: client(server).embeddings.create(model="no-such-model", input="Hello"),
        lambda: client(server).responses.create(model="no-such-model", input="Hello"),
        lambda: client(server).models.retrieve("no-such-model"),
    ):
        with raises(openai.NotFoundError, code="model_not_found"):
            call()


@check("a prompt beyond the context is BadRequestError context_length_exceeded")
def context_length(server):
    for stream in (False, True):
        with raises(openai.BadRequestError, code="context_length_exceeded"):
            client(server).chat.completions.create(
                messages=[user(STORY * 60)], stream=stream, **GREEDY
            )


@check("a request that makes no sense is BadRequestError")
def bad_request(server):
    for extra in (
        {"messages": []},
        {"messages": [user("Hello")], "temperature": 9},
        {"messages": [user("Hello")], "tool_choice": "required"},
        {"messages": [{"role": "wizard", "content": "Hello"}]},
        {"messages": [user("Hello")], "n": 1000},
        {
            "messages": [user("Hello")],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "no-such-type"}},
            },
        },
    ):
        with raises(openai.BadRequestError, type="invalid_request_error"):
            client(server).chat.completions.create(**{**GREEDY, **extra})


@check("a stream that is closed is no longer computed")
def cancel(server):
    schema = {"type": "json_schema", "json_schema": {"name": "endless", "schema": ENDLESS}}
    stream = client(server).chat.completions.create(
        model=MODEL, messages=[user(STORY)], response_format=schema, stream=True
    )
    for _ in range(3):
        next(stream)
    assert server.metric("hypura_answers_active") == 1
    stream.close()
    server.wait_until_idle()
    client(server).chat.completions.create(messages=[user("Hello")], **GREEDY)


@check("without the key it is AuthenticationError, with it an answer")
def api_key(_server):
    guarded = Server("--threads", "1", "--api-key", "secret-1")
    try:
        for key in ("wrong", "secret-12"):
            with raises(openai.AuthenticationError, code="invalid_api_key"):
                client(guarded, api_key=key).models.list()
        answer = client(guarded, api_key="secret-1").chat.completions.create(
            messages=[user("Hello")], **GREEDY
        )
        assert answer.choices[0].message.content
    finally:
        guarded.close()
