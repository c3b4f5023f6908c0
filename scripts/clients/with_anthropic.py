"""The official Python client of Anthropic."""

import functools

import anthropic
from pydantic import BaseModel

import with_ollama
from harness import MODEL, STORY, Server, Suite, raises

suite = Suite("anthropic")
check = suite.check

# The client has no argument for the temperature.
GREEDY = {"temperature": 0}
ASK = {"model": MODEL, "max_tokens": 24, "extra_body": GREEDY}
IMAGE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
}
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a town",
    "input_schema": {
        "type": "object",
        "properties": {"town": {"type": "string", "maxLength": 20}},
        "required": ["town"],
    },
}


class Animal(BaseModel):
    name: str
    legs: int


def client(server, api_key="none", auth_token=None):
    return client_at(server.url, api_key, auth_token)


@functools.cache
def client_at(url, api_key, auth_token):
    """One for each server: to make one takes longer than most answers."""
    return anthropic.Anthropic(base_url=url, max_retries=0, api_key=api_key, auth_token=auth_token)


def user(content):
    return {"role": "user", "content": content}


@check("messages are answered, with usage")
def messages(server):
    answer = client(server).messages.create(messages=[user("Tell me of a fox.")], **ASK)
    assert answer.type == "message" and answer.role == "assistant" and answer.id.startswith("msg_")
    assert answer.content[0].type == "text" and answer.content[0].text
    assert (
        answer.stop_reason in ("end_turn", "max_tokens")
        and answer.model.removesuffix(":latest") == MODEL
    )
    assert total(answer.usage) > 5 and 0 < answer.usage.output_tokens <= 24
    guided = client(server).messages.create(
        messages=[user("Tell me of a fox.")], system="You are a poet.", **ASK
    )
    blocks = client(server).messages.create(
        messages=[user([{"type": "text", "text": "Tell me of a fox."}])],
        system=[{"type": "text", "text": "You are a poet."}],
        **ASK,
    )
    assert guided.content == blocks.content and total(guided.usage) > total(answer.usage)


def total(usage):
    """All tokens of the prompt: those read from the cache are not among input_tokens."""
    return (
        usage.input_tokens
        + (usage.cache_read_input_tokens or 0)
        + (usage.cache_creation_input_tokens or 0)
    )


@check("the number of tokens is obeyed")
def max_tokens(server):
    answer = client(server).messages.create(
        messages=[user("Tell me of a fox.")], **{**ASK, "max_tokens": 3}
    )
    assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 3


@check("the streaming helper says the same as a whole answer")
def stream(server):
    whole = client(server).messages.create(messages=[user("Tell me of a fox.")], **ASK)
    with client(server).messages.stream(messages=[user("Tell me of a fox.")], **ASK) as stream:
        text = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(text) == whole.content[0].text and len(text) > 3
    assert final.content[0].text == whole.content[0].text and final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert total(final.usage) == total(whole.usage)


@check("the events of a stream are in order")
def events(server):
    events = list(
        client(server).messages.create(messages=[user("Tell me of a fox.")], stream=True, **ASK)
    )
    kinds = [e.type for e in events if e.type != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"], kinds
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"], kinds
    assert set(kinds[2:-3]) == {"content_block_delta"}, kinds
    assert events[0].message.usage.input_tokens >= 0 and events[0].message.content == []


@check("a stop sequence ends the answer, and is named")
def stop_sequences(server):
    ask = dict(
        messages=[user("Tell me a long story of a fox.")],
        model=MODEL,
        max_tokens=40,
        extra_body=GREEDY,
    )
    whole = client(server).messages.create(**ask).content[0].text
    word = whole.split()[4]
    stopped = client(server).messages.create(**ask, stop_sequences=["no such text", word])
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == word, stopped
    assert whole.startswith(stopped.content[0].text) and word not in stopped.content[0].text


@check("tool_choice any and tool call a tool, by its schema")
def tools(server):
    ask = dict(
        model=MODEL,
        messages=[user("How is the weather in Rome?")],
        tools=[WEATHER],
        max_tokens=200,
        extra_body=GREEDY,
    )
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        answer = client(server).messages.create(
            **ask, tool_choice={**choice, "disable_parallel_tool_use": True}
        )
        call, *others = answer.content
        assert call.type == "tool_use" and not others and answer.stop_reason == "tool_use", answer
        assert call.name == "get_weather" and call.id and list(call.input) == ["town"]
    none = client(server).messages.create(**ask, tool_choice={"type": "none"})
    assert all(b.type == "text" for b in none.content) and none.content


@check("a call is streamed as JSON in pieces")
def tool_stream(server):
    ask = dict(
        model=MODEL,
        messages=[user("How is the weather in Rome?")],
        tools=[WEATHER],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        max_tokens=200,
        extra_body=GREEDY,
    )
    whole = client(server).messages.create(**ask)
    with client(server).messages.stream(**ask) as stream:
        pieces = [e.partial_json for e in stream if e.type == "input_json"]
        final = stream.get_final_message()
    assert "".join(pieces) and final.stop_reason == "tool_use"
    inputs = [[b.input for b in m.content if b.type == "tool_use"] for m in (whole, final)]
    assert inputs[0] == inputs[1] and len(inputs[0]) == 1, inputs


@check("a call that is cut says nothing in words")
def tool_cut(server):
    ask = dict(
        model=MODEL,
        messages=[user("How is the weather in Rome?")],
        tools=[WEATHER],
        extra_body=GREEDY,
    )
    for limit in (3, 10, 20, 50, 200):
        answer = client(server).messages.create(
            **ask, tool_choice={"type": "any"}, max_tokens=limit
        )
        assert all(b.type == "tool_use" for b in answer.content), (limit, answer.content)


@check("a tool's result goes back")
def tool_result(server):
    turns = [user("How is the weather in Rome?")]
    ask = dict(model=MODEL, tools=[WEATHER], max_tokens=100, extra_body=GREEDY)
    asked = client(server).messages.create(messages=turns, tool_choice={"type": "any"}, **ask)
    turns.append({"role": "assistant", "content": asked.content})
    results = [
        {"type": "tool_result", "tool_use_id": b.id, "content": "22 degrees, no clouds at all"}
        for b in asked.content
        if b.type == "tool_use"
    ]
    turns.append(user(results))
    answer = client(server).messages.create(messages=turns, **ask)
    assert answer.content and total(answer.usage) > total(asked.usage) + 15


@check("an answer that was begun is gone on with")
def prefill(server):
    begun = "Once upon a time there was"
    answer = client(server).messages.create(
        messages=[user("Tell me of a fox."), {"role": "assistant", "content": begun}], **ASK
    )
    raw = with_ollama.client(server).generate(
        MODEL,
        f"<|im_start|>user\nTell me of a fox.<|im_end|>\n<|im_start|>assistant\n{begun}",
        raw=True,
        options={"temperature": 0, "num_predict": 24},
    )
    assert total(answer.usage) == raw.prompt_eval_count, (answer.usage, raw.prompt_eval_count)
    assert answer.content[0].text.strip() == raw.response.strip()


@check("parse reads a pydantic model")
def parse(server):
    ask = dict(model=MODEL, messages=[user("Describe a fox.")], max_tokens=300, extra_body=GREEDY)
    answer = client(server).messages.parse(**ask, output_format=Animal)
    assert isinstance(answer.parsed_output, Animal), answer


@check("the beta interface is the same")
def beta(server):
    ask = dict(messages=[user("Tell me of a fox.")], **ASK)
    plain = client(server).messages.create(**ask)
    answer = client(server).beta.messages.create(**ask, betas=["no-such-beta-2025-01-01"])
    assert answer.content[0].text == plain.content[0].text


@check("an answer names its request")
def request_id(server):
    assert client(server).messages.create(messages=[user("Hello")], **ASK)._request_id


@check("count_tokens counts what a message is then charged")
def count_tokens(server):
    for extra in ({}, {"system": "You are a poet."}, {"tools": [WEATHER]}):
        ask = dict(model=MODEL, messages=[user("Tell me of a fox.")], **extra)
        counted = client(server).messages.count_tokens(**ask).input_tokens
        charged = client(server).messages.create(**ask, max_tokens=1).usage
        assert counted == total(charged), (extra, counted, charged)


@check("models are listed and retrieved")
def models(server):
    listed = [m.id.removesuffix(":latest") for m in client(server).models.list()]
    assert MODEL in listed, listed
    assert client(server).models.retrieve(MODEL).type == "model"


@check("errors are NotFoundError, BadRequestError, AuthenticationError")
def errors(server):
    ours = client(server)
    with raises(anthropic.NotFoundError):
        ours.messages.create(model="no-such-model", messages=[user("Hello")], max_tokens=1)
    for extra in (
        {"messages": []},
        {"messages": [user(STORY * 60)]},
        {"messages": [user("Hello")], "extra_body": {"temperature": 9}},
        {"messages": [user("Hello")], "max_tokens": 0},
        {"messages": [{"role": "wizard", "content": "Hello"}]},
        {"messages": [user("Hello")], "tool_choice": {"type": "any"}},
        {"messages": [user([IMAGE])]},
    ):
        with raises(anthropic.BadRequestError):
            ours.messages.create(**{**ASK, **extra})
    with raises(anthropic.BadRequestError):
        with ours.messages.stream(messages=[user(STORY * 60)], **ASK) as stream:
            stream.get_final_message()
    guarded = Server("--threads", "1", "--api-key", "secret-1")
    try:
        with raises(anthropic.AuthenticationError):
            client(guarded, api_key="wrong").messages.create(messages=[user("Hello")], **ASK)
        assert (
            client(guarded, api_key="secret-1")
            .messages.create(messages=[user("Hello")], **ASK)
            .content
        )
        assert (
            client(guarded, api_key=None, auth_token="secret-1")
            .messages.create(messages=[user("Hello")], **ASK)
            .content
        )
    finally:
        guarded.close()
