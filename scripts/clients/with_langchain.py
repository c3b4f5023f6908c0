"""LangChain's package for Ollama."""

import asyncio

import ollama
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from pydantic import BaseModel

from harness import MODEL, Suite, raises

suite = Suite("langchain")
check = suite.check


class Animal(BaseModel):
    """An animal of a story."""

    name: str
    legs: int


@tool
def get_weather(town: str) -> str:
    """The weather of a town."""
    return f"22 degrees in {town}"


def chat(server, **extra):
    return ChatOllama(
        base_url=server.url, temperature=0, **{"model": MODEL, "num_predict": 16, **extra}
    )


@check("ChatOllama answers, with usage")
def invoke(server):
    answer = chat(server).invoke(
        [SystemMessage("You are a poet."), HumanMessage("Tell me of a fox.")]
    )
    assert answer.content and answer.response_metadata["done_reason"] in ("stop", "length")
    usage = answer.usage_metadata
    assert usage["input_tokens"] > 10 and 0 < usage["output_tokens"] <= 16
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


@check("ChatOllama streams the same, also asynchronously")
def stream(server):
    whole = chat(server).invoke("Tell me of a fox.").content
    pieces = [chunk.content for chunk in chat(server).stream("Tell me of a fox.")]
    assert "".join(pieces) == whole and len(pieces) > 3

    async def gather():
        return [chunk.content async for chunk in chat(server).astream("Tell me of a fox.")]

    assert "".join(asyncio.run(gather())) == whole


@check("ChatOllama refuses a model that is not there when asked to look first")
def validate(server):
    assert chat(server, validate_model_on_init=True).invoke("Hello").content
    with raises(ValueError):
        chat(server, model="no-such-model", validate_model_on_init=True)
    with raises(ollama.ResponseError, status_code=404):
        chat(server, model="no-such-model").invoke("Hello")


@check("bind_tools shows the tools, and results go back")
def tools(server):
    bound = chat(server).bind_tools([get_weather])
    question = HumanMessage("How is the weather in Rome?")
    asked = bound.invoke([question])
    bare = chat(server).invoke([question])
    assert asked.usage_metadata["input_tokens"] > bare.usage_metadata["input_tokens"] + 30
    call = AIMessage(
        "", tool_calls=[{"name": "get_weather", "args": {"town": "Rome"}, "id": "call-1"}]
    )
    result = ToolMessage(get_weather.invoke({"town": "Rome"}), tool_call_id="call-1")
    answer = bound.invoke([question, call, result])
    assert answer.usage_metadata["input_tokens"] > asked.usage_metadata["input_tokens"] + 15


@check("with_structured_output gives a pydantic model")
def structured(server):
    structured = chat(server, num_predict=300).with_structured_output(Animal)
    assert isinstance(structured.invoke("Describe a fox."), Animal)
    raw = (
        chat(server, num_predict=300)
        .with_structured_output(Animal, include_raw=True)
        .invoke("Describe a fox.")
    )
    assert isinstance(raw["parsed"], Animal) and raw["parsing_error"] is None


@check("OllamaEmbeddings embeds documents and queries alike")
def embeddings(server):
    ours = OllamaEmbeddings(model=MODEL, base_url=server.url)
    documents = ours.embed_documents(["a fox in the wood", "the price of corn"])
    query = ours.embed_query("a fox in the wood")
    assert len(documents) == 2 and len(query) == 256
    assert sum(a * b for a, b in zip(query, documents[0], strict=True)) > 0.999
    assert sum(a * b for a, b in zip(query, documents[1], strict=True)) < 0.999


@check("OllamaLLM completes, streamed too")
def llm(server):
    ours = OllamaLLM(model=MODEL, base_url=server.url, temperature=0, num_predict=16)
    whole = ours.invoke("Tell me of a fox.")
    assert whole and "".join(ours.stream("Tell me of a fox.")) == whole
    assert ours.batch(["Tell me of a fox.", "Hello"])[0] == whole
