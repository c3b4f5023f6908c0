"""What is checked: one function per scene, each with a page of its own.

Scenes of `ANYWHERE` hold against any server; those of `SCRIPTED` need the mock.
"""

import json

import access
import mock as mock_server

QUESTION = "Tell me a story about an old man."
ANSWER_S_MAX = 120
# The page is meant to be small: its files as they are embedded.
BYTES_MAX = 82_000

# ---- Steps


def open_page(page, base):
    page.open(f"{base}/ui")
    page.until("document.querySelector('#model').value", "there are models to choose from")
    page.until("document.querySelector('#version').textContent", "the status is there")


def choose(page, model):
    page.js(
        f"(() => {{ const select = document.querySelector('#model'); select.value = {json.dumps(model)};"
        " select.dispatchEvent(new Event('change')); })()"
    )
    assert page.js("document.querySelector('#model').value") == model, f"{model} can be chosen"


def send(page, text):
    page.js("document.querySelector('#prompt').focus()")
    page.type(text)
    page.key("Enter")


def click(page, selector):
    page.js(f"document.querySelector({json.dumps(selector)}).click()")


def answered(page):
    """Waits for the end of the last answer and returns its text."""
    page.until(
        "document.querySelector('#stop').hidden && !!document.querySelector('.answer:last-child')",
        "the answer is over",
        ANSWER_S_MAX,
    )
    return page.js("document.querySelector('.answer:last-child').innerText")


def expect(page, expression, what):
    assert page.js(expression), what


def quiet(page):
    assert not page.complaints, f"the console says {page.complaints}"


# ---- Anywhere


def loads(page, base):
    """Nothing is fetched from elsewhere, and the console is silent."""
    open_page(page, base)
    quiet(page)
    foreign = [url for url in page.requests if not url.startswith(f"{base}/")]
    assert not foreign, f"asked elsewhere: {foreign}"
    access.check_names(page)


def answers_by_keyboard(page, base):
    """From the top of the page to an answer without a mouse."""
    open_page(page, base)
    page.js("document.activeElement.blur()")
    page.key("Tab")
    page.key("Enter")
    page.until("document.activeElement.id === 'prompt'", "the skip link leads to the message")
    page.type(QUESTION)
    page.key("Enter", modifiers=8)
    expect(page, "document.querySelector('#prompt').value.endsWith('\\n')", "Shift+Enter breaks the line")
    page.key("Enter")
    answered(page)
    expect(page, "/tokens\\/s/.test(document.querySelector('.numbers').textContent)", "the answer has its numbers")
    expect(page, "document.querySelector('#prompt').value === ''", "the box is empty again")
    page.call("Page.reload")
    page.until("document.querySelector('.numbers')?.textContent", "the conversation is there after a reload")
    quiet(page)


def fits_everybody(page, base):
    """Focus, names and contrast with an answer on the page, in both modes."""
    open_page(page, base)
    send(page, QUESTION)
    answered(page)
    page.js("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    for mode in ("light", "dark"):
        page.emulate(prefers_color_scheme=mode)
        for sheet in ("options", "library"):
            click(page, f"#{sheet}-open")
            access.check_contrast(page)
            access.check_names(page)
            page.key("Escape")
            page.until(f"!document.querySelector('#{sheet}').matches(':popover-open')", "Escape closes the sheet")
    access.check_focus(page)


def darkens(page, base):
    """The system decides, the switch overrides, and the choice is remembered."""
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    open_page(page, base)
    page.emulate(prefers_color_scheme="light")
    light = page.js(ground)
    page.emulate(prefers_color_scheme="dark")
    dark = page.js(ground)
    assert light != dark, "dark mode has colours of its own"
    click(page, "#theme")
    assert page.js(ground) == light, "the switch overrides the system"
    page.call("Page.reload")
    page.until(f"document.readyState === 'complete' && {ground} === {json.dumps(light)}", "the choice is remembered")


def fits_a_phone(page, base):
    page.size(360, 740)
    open_page(page, base)
    send(page, QUESTION)
    answered(page)
    for view in ("chat", "status"):
        click(page, f".views [data-view={view}]")
        access.check_width(page)
        access.check_contrast(page)
        access.check_focus(page)
    click(page, ".views [data-view=chat]")
    for sheet in ("options", "library"):
        click(page, f"#{sheet}-open")
        box = page.js(f"document.querySelector('#{sheet}').getBoundingClientRect().toJSON()")
        assert 0 <= box["left"] and box["right"] <= 360 and box["bottom"] <= 740, f"{sheet} is at {box}"
        page.key("Escape")


def rests(page, base):
    """With reduced motion nothing moves by itself."""
    page.emulate(prefers_reduced_motion="reduce")
    open_page(page, base)
    send(page, QUESTION)
    answered(page)
    moving = "document.getAnimations().map((one) => one.animationName ?? one.transitionProperty)"
    assert page.js(moving) == [], "something moves"


ANYWHERE = [loads, answers_by_keyboard, fits_everybody, darkens, fits_a_phone, rests]

# ---- Against the mock


def is_small(_page, _mock):
    size = sum(path.stat().st_size for path in mock_server.UI.iterdir())
    assert size <= BYTES_MAX, f"the page has {size} bytes, more than {BYTES_MAX}"


def asks_as_told(page, mock):
    """Model, reasoning, settings and system prompt reach the server; the answer shows all it has."""
    open_page(page, mock.base)
    page.until("!document.querySelector('#think-box').hidden", "the model can reason")
    page.js(
        "(() => { const set = (selector, value) => { const field = document.querySelector(selector); field.value = value;"
        " field.dispatchEvent(new Event('input', { bubbles: true })); };"
        " set('[name=temperature]', '0'); set('[name=seed]', '7'); set('#system', 'Be brief.'); })()"
    )
    send(page, QUESTION)
    text = answered(page)
    body = last_chat(mock)
    assert body["options"] == {"temperature": 0, "seed": 7}, body["options"]
    assert body["think"] is True
    assert [one["role"] for one in body["messages"]] == ["system", "user"], body["messages"]
    assert "reused 812 of 940 prompt tokens" in text, text
    assert "30.1 tokens/s" in text and "first token after 420 ms" in text, text
    expect(page, "document.querySelector('.reasoning').open === false", "reasoning is collapsed")
    expect(page, "document.querySelector('.thought').textContent.includes('Two tiers')", "reasoning is there")
    expect(page, "!document.querySelector('.prose').textContent.includes('Two tiers')", "reasoning is apart")
    expect(page, "document.querySelector('.prose pre').textContent === 'hypura run model.gguf --memory 3GiB'", "code")
    expect(page, "document.querySelector('#announcer').textContent.includes('End of the answer')", "it is announced")


def stops(page, mock):
    """Escape ends an answer, keeps what was said, and lets the server know."""
    open_page(page, mock.base)
    choose(page, "endless:latest")
    send(page, QUESTION)
    page.until("document.querySelector('.prose').textContent.includes('again')", "words arrive")
    page.type("typed meanwhile")
    page.key("Escape")
    assert "stopped" in answered(page)
    assert mock.hung_up.wait(10), "the server was told"
    expect(page, "document.querySelector('#prompt').value === 'typed meanwhile'", "what was typed is there")
    expect(page, "document.activeElement.id === 'prompt'", "the focus is there")


def shows_errors(page, mock):
    """Each way to fail is said where the answer would be; the question is still there."""
    open_page(page, mock.base)
    for model, said in (
        ("refused:latest", "raise --memory"),
        ("failing:latest", "the file changed"),
        ("cut:latest", "ended before the answer did"),
    ):
        click(page, "#new")
        choose(page, model)
        send(page, QUESTION)
        text = answered(page)
        assert said in text, f"{model}: {text}"
        expect(page, f"document.querySelector('.user').textContent.includes({json.dumps(QUESTION)})", "question")
    access.check_contrast(page)
    # A question after a failure takes the failed one along, as one turn.
    click(page, "#new")
    choose(page, "refused:latest")
    send(page, "first")
    answered(page)
    choose(page, "demo:latest")
    send(page, "second")
    answered(page)
    assert last_chat(mock)["messages"] == [{"role": "user", "content": "first\n\nsecond"}]


def survives_the_network(page, mock):
    """A server that went away is said once, and typed text stays."""
    gone = mock_server.Mock()
    open_page(page, gone.base)
    gone.close()
    send(page, QUESTION)
    assert "can't be reached" in answered(page)
    page.until("!document.querySelector('#status-notice').hidden", "the status says so too")


def recovers(page, mock):
    """The status backs off while it fails, and comes back."""
    open_page(page, mock.base)
    mock.status_fails = True
    page.until("document.querySelector('#status-notice').textContent.includes('the engine is gone')", "it says why")
    mock.status_fails = False
    page.until("document.querySelector('#status-notice').hidden", "it recovers")


def bears_gaps(page, mock):
    """Whatever the status leaves out, the rest is shown."""
    open_page(page, mock.base)
    odd = [{"experts": {"layers": 2, "experts": 9}}, {"experts": {"uses": [[1, 2]], "resident": None}}, {"tiers": None, "rates": {}}]
    models = [{"name": f"odd{at}", **more} for at, more in enumerate(odd)]
    try:
        for given in ({"models": None, "version": "gap"}, {"models": [None, {}, *models], "sessions": [{}], "version": "odd"}):
            mock.status_given = given
            page.until(f"document.querySelector('#version').textContent === {json.dumps(given['version'])}", "it is shown")
            expect(page, "document.querySelector('#status-notice').hidden", "without a complaint")
        expect(page, "document.querySelectorAll('#models > section').length === 3", "three models have names")
        expect(page, "!/NaN|undefined|null/.test(document.querySelector('#status').innerText)", "gaps are dashes")
    finally:
        mock.status_given = None
    quiet(page)


def shows_a_gpu(page, mock):
    """What lies on the GPU and went there is shown where there is one, and only there."""
    shown = "[...document.querySelectorAll('#status .place')].filter((place) => !place.hidden).map((place) => place.innerText).join('|')"
    open_page(page, mock.base)
    expect(page, f"!({shown}).includes('Graphics memory')", "without a GPU there is no bar for it")
    status = mock.status()
    (model,) = status["models"]
    model["tiers"] |= {"vram_weights_bytes": 2 << 30, "vram_slots_bytes": 3 << 30, "vram_kv_bytes": 1 << 30, "vram_buffers_bytes": 512 << 20}
    model["stream"]["gpu"] = {"copied_bytes": 4 << 30, "lookups": 1000, "hits": 750, "memory_hits": 200, "computed_in_place": 0}
    try:
        mock.status_given = status | {"vram_budget_bytes": 8 << 30, "version": "gpu"}
        page.until("document.querySelector('#version').textContent === 'gpu'", "it is shown")
        for text in ("Graphics memory", "6.50 GiB of a budget of 8.00 GiB", "3.00 GiB", "1.50 GiB"):
            expect(page, f"({shown}).includes({json.dumps(text)})", f"the bar says {text}")
        for text in ("4.00 GiB copied to the GPU", "75% of experts found there"):
            expect(page, f"document.querySelector('#status').innerText.includes({json.dumps(text)})", f"it says {text}")
        access.check_contrast(page)
        access.check_names(page)
    finally:
        mock.status_given = None
    quiet(page)


def asks_for_a_key(page, _mock):
    locked = mock_server.Mock(key="open-sesame")
    dialog = "document.querySelector('#key-dialog').open"
    try:
        page.open(f"{locked.base}/ui")
        page.until(dialog, "the dialog opens")
        access.check_contrast(page)
        page.type("wrong")
        page.key("Enter")
        page.until(f"{dialog} && document.querySelector('#key-text').textContent.includes('refused')", "asked again")
        page.key("Escape")
        page.until(f"!{dialog}", "the dialog can be left")
        page.until("!document.querySelector('#status-notice').hidden", "the status says what is missing")
        expect(page, f"!{dialog}", "what asks by itself does not open it again")
        send(page, QUESTION)
        page.until(dialog, "sending does")
        page.key("Escape")
        page.until("!document.querySelector('#notice').hidden", "it says that there is no key")
        expect(page, f"document.querySelector('#prompt').value === {json.dumps(QUESTION)}", "typed text is there")
        page.call("Page.reload")
        page.until(f"document.readyState === 'complete' && {dialog}", "a new page asks again")
        page.type("open-sesame")
        page.key("Enter")
        page.until("document.querySelector('#model').value", "the key opens the list")
        page.js("document.querySelector('#prompt').focus()")
        page.key("Enter")
        assert "30.1 tokens/s" in answered(page)
        headers = [headers for path, _, headers in locked.received if path == "/api/chat"]
        assert headers[-1]["Authorization"] == "Bearer open-sesame"
        expect(page, "!Object.values(localStorage).some((value) => value.includes('sesame'))", "the key is not kept")
    finally:
        locked.close()


def shows_text_as_text(page, mock):
    """Nothing in an answer becomes markup, script or a link other than http."""
    open_page(page, mock.base)
    choose(page, "hostile:latest")
    send(page, "<b>me too</b>")
    text = answered(page)
    expect(page, "document.title === 'Hypura'", "no script has run")
    expect(page, "!document.querySelector('#messages').querySelector('img, script, b')", "no markup")
    assert '<img src="https://evil.invalid/x"' in text
    links = page.js("[...document.querySelectorAll('.prose a')].map((one) => one.href)")
    assert all(link.startswith("https://") for link in links) and "https://example.com/a" in links, links
    expect(page, "document.querySelector('.prose strong em').textContent === 'both'", "emphasis nests")
    expect(page, "document.querySelector('.prose li li > p').textContent === 'two'", "lists nest")
    expect(page, "document.querySelector('.prose li li pre').textContent === 'let x = 1;'", "code in a list")
    expect(page, "document.querySelectorAll('.prose > ul > li').length === 2", "the outer list goes on")
    assert "cut off" in text
    assert not [url for url in page.requests if not url.startswith(mock.base)], "asked elsewhere"
    quiet(page)


def edits_and_keeps(page, mock):
    """Change the last message, retry, begin anew, find it again, delete it."""
    open_page(page, mock.base)
    send(page, "helo")
    answered(page)
    page.type("a draft")
    click(page, ".user .actions button:last-child")
    expect(page, "document.querySelector('#prompt').value === 'helo'", "the message is in the box")
    page.key("Escape")
    expect(page, "document.querySelector('#prompt').value === 'a draft'", "the draft is back")
    click(page, ".user .actions button:last-child")
    page.type("!")
    page.key("Enter")
    answered(page)
    assert last_chat(mock)["messages"][-1]["content"] == "helo!"
    expect(page, "document.querySelectorAll('.message').length === 2", "it took the place of the old one")
    click(page, ".answer .actions button:last-child")
    answered(page)
    expect(page, "document.querySelectorAll('.message').length === 2", "so does a retry")
    click(page, "#new")
    expect(page, "document.querySelectorAll('.message').length === 0", "a new conversation is empty")
    click(page, "#library-open")
    click(page, "#library-list .entry")
    expect(page, "document.querySelector('.user .text').textContent === 'helo!'", "the old one is there")
    click(page, "#library-open")
    click(page, "#library-list .link")
    click(page, "#library-list .link")
    expect(page, "document.querySelectorAll('.entry, .message').length === 0", "it is deleted")


def says_when_full(page, mock):
    """Full storage is said, and the conversation goes on."""
    open_page(page, mock.base)
    page.js(
        "(() => { for (let size = 1 << 22; size; size >>= 1)"
        " for (let at = 0; at < 3; at += 1) try { localStorage.setItem(`other${size}.${at}`, 'x'.repeat(size)); } catch {} })()"
    )
    send(page, QUESTION)
    assert "30.1 tokens/s" in answered(page)
    expect(page, "document.querySelector('#notice').textContent.includes('storage is full')", "it is said")


def draws_experts(page, mock):
    """The heat map has colours, reads out cells, and fits large models."""
    open_page(page, mock.base)
    check_heatmap(page, layers=8, experts=32)
    large = mock_server.Mock(large=True)
    try:
        open_page(page, large.base)
        check_heatmap(page, layers=48, experts=128)
    finally:
        large.close()


def check_heatmap(page, layers, experts):
    canvas = ".experts canvas"
    page.until(f"document.querySelector('{canvas}')?.width > {experts - 1}", "the heat map has a size")
    colours = page.js(
        f"(() => {{ const canvas = document.querySelector('{canvas}');"
        " const data = new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer);"
        " return new Set(data).size; })()"
    )
    assert colours > 20, f"the heat map has {colours} colours"
    readout = "document.querySelector('.readout').textContent"
    page.hover(canvas)
    page.until(f"{readout}.includes('Layer {layers // 2}, expert {experts // 2}:')", "pointing reads a cell")
    page.js(f"document.querySelector('{canvas}').focus()")
    for key in ("End", "ArrowRight", "ArrowDown"):
        page.key(key)
    page.until(f"{readout}.includes('expert {experts - 1}:')", "keys read a cell")
    expect(page, f"document.querySelector('.experts .hint').textContent.includes('{layers} layers of {experts}')", "words")


def says_how_to_load(page, _mock):
    empty = mock_server.Mock(empty=True)
    try:
        page.open(f"{empty.base}/ui")
        page.until("document.querySelector('.status').innerText.includes('No model is loaded')", "it says so")
        page.until("document.querySelector('#model').innerText.includes('no models')", "the list says so")
        send(page, QUESTION)
        page.until("document.querySelector('#notice').textContent.includes('GGUF')", "it says what to do")
        access.check_contrast(page)
        access.check_names(page)
    finally:
        empty.close()


def last_chat(mock):
    return [body for path, body, _ in mock.received if path == "/api/chat"][-1]


SCRIPTED = [
    is_small,
    asks_as_told,
    stops,
    shows_errors,
    survives_the_network,
    recovers,
    bears_gaps,
    shows_a_gpu,
    asks_for_a_key,
    shows_text_as_text,
    edits_and_keeps,
    says_when_full,
    draws_experts,
    says_how_to_load,
]
