"""Follow-ups: what was computed for a conversation once is read back, not computed again."""

import json
import urllib.request

import with_anthropic
import with_openai
from harness import DRAFT, MODEL, STORY, Suite

suite = Suite("follow-ups")
check = suite.check

# The opening is long: a short prompt is computed again where that is faster than reading it.
OPENING_REPEATS = 5
QUESTIONS = [
    "Tell me how it goes on.",
    "And what did the miller say to that?",
    "Who came over the bridge in the evening?",
    "Why was the mother so sad?",
    "How does it end?",
]
ANSWER_TOKENS = 24


class Conversation:
    """A conversation by plain calls of Ollama's API. The title makes it unlike all others."""

    def __init__(self, title):
        self.messages = [{"role": "system", "content": title + ". " + STORY * OPENING_REPEATS}]
        self.prompt_tokens = 0
        self.cached_tokens = None

    def ask(self, server, question, model=MODEL):
        """Asks one more question. Returns how many tokens were reused."""
        self.messages.append({"role": "user", "content": question})
        answer = post(
            f"{server.url}/api/chat",
            model=model,
            messages=self.messages,
            stream=False,
            options={"temperature": 0, "num_predict": ANSWER_TOKENS},
        )
        self.messages.append(answer["message"])
        self.prompt_tokens = answer["prompt_eval_count"]
        self.cached_tokens = answer.get("prompt_eval_cached_count")
        return answer["hypura"]["reused_tokens"]

    def must_reuse(self, server, question):
        """Asks one more question; all before the last answer has to be reused."""
        known = self.prompt_tokens
        reused = self.ask(server, question)
        assert reused >= known, (
            f"{reused} tokens reused of {known} that were known, and {self.prompt_tokens} in all"
        )


def post(url, **body):
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@check("five turns through Ollama's API reuse all before the last answer")
def turns(server):
    talk = Conversation("The fox and the miller")
    first = talk.ask(server, QUESTIONS[0])
    assert first < talk.prompt_tokens / 2 and talk.prompt_tokens > 256, (first, talk.prompt_tokens)
    for question in QUESTIONS[1:]:
        talk.must_reuse(server, question)


@check("a follow-up after a restart")
def restart(server):
    talk = Conversation("The fox who went to sleep")
    for question in QUESTIONS[:2]:
        talk.ask(server, question)
    assert server.stop() == 0
    server.start()
    for question in QUESTIONS[2:4]:
        talk.must_reuse(server, question)


@check("a follow-up after another model was asked")
def other_model(server):
    talk = Conversation("The fox who was forgotten")
    for question in QUESTIONS[:2]:
        talk.ask(server, question)
    for _ in range(2):
        Conversation("A bear").ask(server, QUESTIONS[0], model=DRAFT)
    talk.must_reuse(server, QUESTIONS[2])


@check("a follow-up after the model was unloaded and another one loaded")
def unloaded(server):
    talk = Conversation("The fox who moved house")
    for question in QUESTIONS[:2]:
        talk.ask(server, question)
    assert (
        post(f"{server.url}/api/generate", model=MODEL, keep_alive=0, stream=False)["done_reason"]
        == "unload"
    )
    Conversation("A bear").ask(server, QUESTIONS[0], model=DRAFT)
    talk.must_reuse(server, QUESTIONS[2])


@check("two conversations that take turns keep their own")
def two(server):
    talks = [Conversation("The red fox"), Conversation("The grey fox")]
    for question in QUESTIONS[:3]:
        for talk in talks:
            if question == QUESTIONS[0]:
                talk.ask(server, question)
            else:
                talk.must_reuse(server, question)


@check("a conversation says the same, whether the server was restarted in between or not")
def same_answer(server):
    undisturbed = Conversation("The honest fox")
    for question in QUESTIONS[:3]:
        undisturbed.ask(server, question)
    restarted = Conversation("The honest fox")
    other = type(server)(*server.arguments)
    try:
        for question in QUESTIONS[:2]:
            restarted.ask(other, question)
        other.restart()
        restarted.must_reuse(other, QUESTIONS[2])
    finally:
        other.close()
    assert restarted.messages == undisturbed.messages


@check("Ollama's clients are told in prompt_eval_cached_count")
def prompt_eval_cached_count(server):
    talk = Conversation("The fox who was counted")
    for question in QUESTIONS[:2]:
        reused = talk.ask(server, question)
        assert talk.cached_tokens == reused, (talk.cached_tokens, reused)


@check("OpenAI's clients are told in prompt_tokens_details.cached_tokens")
def cached_tokens(server):
    ours = with_openai.client(server)
    messages = [{"role": "system", "content": "The fox of OpenAI. " + STORY * OPENING_REPEATS}]
    known = 0
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        answer = ours.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=ANSWER_TOKENS
        )
        messages.append(answer.choices[0].message)
        cached = answer.usage.prompt_tokens_details.cached_tokens
        assert known <= cached < answer.usage.prompt_tokens, (
            known,
            cached,
            answer.usage.prompt_tokens,
        )
        known = answer.usage.prompt_tokens


@check("the Responses API tells it in input_tokens_details.cached_tokens")
def responses_cached_tokens(server):
    ours = with_openai.client(server)
    items = []
    known = 0
    for question in QUESTIONS[:3]:
        items.append({"role": "user", "content": question})
        answer = ours.responses.create(
            model=MODEL,
            instructions="The fox of the responses. " + STORY * OPENING_REPEATS,
            input=items,
            temperature=0,
            max_output_tokens=ANSWER_TOKENS,
        )
        items += answer.output
        cached = answer.usage.input_tokens_details.cached_tokens
        assert known <= cached < answer.usage.input_tokens, (
            known,
            cached,
            answer.usage.input_tokens,
        )
        known = answer.usage.input_tokens


@check("Anthropic's clients are told in cache_read_input_tokens")
def cache_read(server):
    ours = with_anthropic.client(server)
    turns = []
    known = 0
    for question in QUESTIONS:
        turns.append({"role": "user", "content": question})
        answer = ours.messages.create(
            model=MODEL,
            system="The fox of Anthropic. " + STORY * OPENING_REPEATS,
            messages=turns,
            max_tokens=ANSWER_TOKENS,
            extra_body={"temperature": 0},
        )
        turns.append({"role": "assistant", "content": answer.content})
        usage = answer.usage
        prompt = (
            usage.input_tokens
            + usage.cache_read_input_tokens
            + (usage.cache_creation_input_tokens or 0)
        )
        assert known <= usage.cache_read_input_tokens < prompt, (known, usage)
        known = prompt
