"""A headless Chromium, driven over the DevTools protocol through a pipe: no port, no packages.

The browser reads messages from descriptor 3 and writes to 4, JSON ended by a zero byte each
(`--remote-debugging-pipe`; https://chromedevtools.github.io/devtools-protocol).
"""

import base64
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ANSWER_S_MAX = 30
# The keys that the checks press: `key`, the code of Windows that Chromium wants, and text.
KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, None),
    "Tab": (9, None),
    "ArrowRight": (39, None),
    "ArrowDown": (40, None),
    "End": (35, None),
}
SHIFT = 8


def find():
    """The path of a browser, or None. `CHROMIUM` overrides."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One process with a throw-away profile; `page()` opens a page with storage of its own."""

    def __init__(self, path):
        self.profile = tempfile.mkdtemp(prefix="hypura-ui-")
        to_browser, self.input = os.pipe()
        self.output, from_browser = os.pipe()
        self.process = subprocess.Popen(
            # The shell puts the pipes where the browser looks for them. Pages are ours alone, and
            # containers have no user namespaces for the sandbox.
            ["/bin/sh", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "sh", path]
            + ["--headless", "--no-sandbox", "--remote-debugging-pipe", f"--user-data-dir={self.profile}"]
            + ["--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.next_id = 0
        self.answers = {}
        self.listeners = {}
        threading.Thread(target=self._read, daemon=True).start()

    def close(self):
        self.process.terminate()
        self.process.wait(ANSWER_S_MAX)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, session=None, **params):
        """Sends a command and returns its result."""
        self.next_id += 1
        answer = self.answers[self.next_id] = queue.Queue(1)
        message = {"id": self.next_id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.input, data) :]
        result = answer.get(timeout=ANSWER_S_MAX)
        if "error" in result:
            raise RuntimeError(f"{method}: {result['error']['message']}")
        return result["result"]

    def page(self, width=1280, height=800):
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self, session, context, width, height)

    def _read(self):
        rest = b""
        while data := os.read(self.output, 1 << 16):
            *whole, rest = (rest + data).split(b"\0")
            for text in whole:
                message = json.loads(text)
                if "id" in message:
                    self.answers.pop(message["id"]).put(message)
                elif listener := self.listeners.get(message.get("sessionId")):
                    listener(message["method"], message["params"])


class Page:
    """A page. `requests` are the addresses it asked for, `complaints` what its console said."""

    def __init__(self, browser, session, context, width, height):
        self.browser, self.session, self.context = browser, session, context
        self.requests, self.complaints = [], []
        browser.listeners[session] = self._heard
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")
        self.size(width, height)

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def close(self):
        self.browser.call("Target.disposeBrowserContext", browserContextId=self.context)

    def size(self, width, height):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def emulate(self, **features):
        """Media features, underlines for dashes: `prefers_color_scheme="dark"`."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=named)

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'", "the page loads")

    def js(self, expression):
        """The value of an expression in the page; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, expression, what, limit_s=15):
        """Polls until an expression is true, and returns its value."""
        end = time.monotonic() + limit_s
        while True:
            value = self.js(expression)
            if value:
                return value
            if time.monotonic() > end:
                raise AssertionError(f"waited {limit_s} s in vain until {what}")
            time.sleep(0.03)

    def key(self, name, modifiers=0):
        code, text = KEYS[name]
        common = {"key": name, "code": name, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **common, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def hover(self, selector):
        """Moves the mouse to the middle of an element."""
        x, y = self.js(
            f"(() => {{ const element = document.querySelector({json.dumps(selector)}); element.scrollIntoView({{block: 'nearest'}});"
            " const box = element.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path):
        data = self.call("Page.captureScreenshot", format="png")["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))

    def _heard(self, method, params):
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(("exception", json.dumps(params["exceptionDetails"])[:600]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(("console", json.dumps(params["args"])[:600]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            entry = params["entry"]
            self.complaints.append((entry["source"], f"{entry['text']} {entry.get('url', '')}"))
