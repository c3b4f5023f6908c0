"""The official Python client of OpenAI: the Responses API."""

import json

import openai

from harness import MODEL, Suite, raises
from with_openai import Animal, client

suite = Suite("responses")
check = suite.check

ASK = {"model": MODEL, "temperature": 0, "max_output_tokens": 24}
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a town",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"town": {"type": "string", "maxLength": 20}},
        "required": ["town"],
        "additionalProperties": False,
    },
}


@check("create answers, with usage")
def create(server):
    answer = client(server).responses.create(input="Tell me of a fox.", **ASK)
    assert answer.object == "response" and answer.id.startswith("resp_") and answer.output_text
    assert answer.status in ("completed", "incomplete")
    assert answer.output[0].type == "message" and answer.output[0].content[0].type == "output_text"
    assert 0 < answer.usage.output_tokens <= 24 and answer.usage.input_tokens > 5
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    guided = client(server).responses.create(
        input="Tell me of a fox.", instructions="You are a poet.", **ASK
    )
    assert guided.usage.input_tokens > answer.usage.input_tokens


@check("an answer that was cut is incomplete")
def incomplete(server):
    answer = client(server).responses.create(
        input="Tell me of a fox.", **{**ASK, "max_output_tokens": 3}
    )
    assert (
        answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
    ), answer


@check("items of a conversation are read as it")
def items(server):
    answer = client(server).responses.create(
        input=[
            {"role": "user", "content": "Tell me of a fox."},
            {"role": "assistant", "content": "There was a fox."},
            {"role": "user", "content": [{"type": "input_text", "text": "And then?"}]},
        ],
        **ASK,
    )
    first = client(server).responses.create(input="Tell me of a fox.", **ASK)
    assert answer.usage.input_tokens > first.usage.input_tokens + 10
    following = client(server).responses.create(
        input=[
            {"role": "user", "content": "Tell me of a fox."},
            *first.output,
            {"role": "user", "content": "And then?"},
        ],
        **ASK,
    )
    assert following.usage.input_tokens > first.usage.total_tokens


@check("the events of a stream are in order and make the same answer")
def stream(server):
    whole = client(server).responses.create(input="Tell me of a fox.", **ASK)
    events = list(client(server).responses.create(input="Tell me of a fox.", stream=True, **ASK))
    kinds = [e.type for e in events]
    assert kinds[0] == "response.created" and kinds[-1] in (
        "response.completed",
        "response.incomplete",
    ), kinds
    order = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    places = [kinds.index(kind) for kind in order]
    assert places == sorted(places), kinds
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert (
        "".join(e.delta for e in events if e.type == "response.output_text.delta")
        == whole.output_text
    )
    assert events[-1].response.output_text == whole.output_text
    assert events[-1].response.usage == whole.usage


@check("the streaming helper gathers the answer")
def helper(server):
    with client(server).responses.stream(
        input="Tell me of a fox.", **{**ASK, "max_output_tokens": 300}
    ) as stream:
        deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text and len(deltas) > 3


@check("parse reads a pydantic model, streamed too")
def parse(server):
    ask = dict(
        model=MODEL,
        input="Describe a fox.",
        text_format=Animal,
        temperature=0,
        max_output_tokens=300,
    )
    animal = client(server).responses.parse(**ask).output_parsed
    assert isinstance(animal, Animal)
    with client(server).responses.stream(**ask) as stream:
        stream.until_done()
        assert stream.get_final_response().output_parsed == animal


@check("tool_choice required calls a function, and its result goes back")
def tools(server):
    ask = dict(model=MODEL, tools=[WEATHER], temperature=0, max_output_tokens=200)
    items = [{"role": "user", "content": "How is the weather in Rome?"}]
    asked = client(server).responses.create(input=items, tool_choice="required", **ask)
    calls = [item for item in asked.output if item.type == "function_call"]
    assert calls and calls[0].name == "get_weather" and calls[0].call_id
    assert list(json.loads(calls[0].arguments)) == ["town"]
    items += asked.output
    items += [
        {"type": "function_call_output", "call_id": c.call_id, "output": "22 degrees, no clouds"}
        for c in calls
    ]
    answer = client(server).responses.create(input=items, **ask)
    assert answer.output and answer.usage.input_tokens > asked.usage.input_tokens + 15


@check("a function call is streamed in deltas")
def tool_stream(server):
    ask = dict(
        model=MODEL,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_output_tokens=200,
        input="How is the weather in Rome?",
    )
    events = list(client(server).responses.create(stream=True, **ask))
    deltas = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert len(done) == 1 and done[0].arguments == deltas and list(json.loads(deltas)) == ["town"]
    assert events[-1].response.output[-1].arguments == deltas


@check("what can't be served is refused")
def refused(server):
    with raises(openai.BadRequestError):
        client(server).responses.create(input=[], **ASK)
    with raises(openai.APIStatusError):
        client(server).responses.create(input="Hello", previous_response_id="resp_no_such", **ASK)
