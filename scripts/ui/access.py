"""What a page must be for everybody: names, visible focus, contrast, no sideways scrolling."""

CONTRAST_MIN = 4.5
TABS_MAX = 200
ROLES = {"button", "textbox", "combobox", "checkbox", "spinbutton", "link", "application", "region", "dialog", "meter", "img", "DisclosureTriangle"}

# Everything with text of its own that can be seen, whose contrast with what is painted below it is
# too low. Colours go through a canvas, so that any way of writing them is understood. WCAG 2.2 has
# the formula.
CONTRAST = """(() => {
  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (css) => {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = css;
    pixel.fillRect(0, 0, 1, 1);
    return [...pixel.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
  };
  const over = (top, below) => [0, 1, 2].map((at) => top[at] * top[3] + below[at] * (1 - top[3]));
  const ground = (element) => {
    if (!element) return [1, 1, 1];
    const colour = rgba(getComputedStyle(element).backgroundColor);
    return colour[3] === 1 ? colour : over(colour, ground(element.parentElement));
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const bad = [];
  let seen = 0;
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim()) || element.placeholder;
    if (!own || !element.checkVisibility({ visibilityProperty: true }) || element.closest(".unseen, option")) continue;
    seen += 1;
    const below = ground(element);
    const colours = [getComputedStyle(element).color];
    if (element.placeholder) colours.push(getComputedStyle(element, "::placeholder").color);
    for (const colour of colours) {
      const [a, b] = [light(over(rgba(colour), below)), light(below)];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < %s) bad.push(`${element.tagName}.${element.className}: ${ratio.toFixed(2)}`);
    }
  }
  return { seen, bad };
})()""" % CONTRAST_MIN

# The element that has the focus, and whether it or the box it is in shows that.
FOCUSED = """(() => {
  const element = document.activeElement;
  if (!element || element === document.body) return null;
  const shows = (one) => getComputedStyle(one).outlineStyle !== "none" && Number.parseFloat(getComputedStyle(one).outlineWidth) >= 1;
  const again = "reached" in element.dataset;
  element.dataset.reached = "yes";
  return { again, what: element.outerHTML.slice(0, 90), shown: shows(element) || [...document.querySelectorAll(".box")].some((box) => box.contains(element) && shows(box)) };
})()"""

UNREACHED = """[...document.querySelectorAll("button, input, select, textarea, summary, a[href], canvas[tabindex], pre[tabindex]")]
  .filter((one) => one.checkVisibility({ visibilityProperty: true }) && !one.disabled && !one.dataset.reached)
  .map((one) => one.outerHTML.slice(0, 90))"""


def check_contrast(page):
    result = page.js(CONTRAST)
    assert result["seen"] > 10, "there is text to look at"
    assert not result["bad"], f"contrast below {CONTRAST_MIN}: {result['bad']}"


def check_names(page):
    """Each control that assistive technology is told of has a name."""
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if not node["ignored"] and node.get("role", {}).get("value") in ROLES]
    assert len(controls) > 5, "there are controls"
    nameless = [node["role"]["value"] for node in controls if not node.get("name", {}).get("value", "").strip()]
    assert not nameless, f"controls without a name: {nameless}"


def check_focus(page):
    """The Tab key reaches every control that can be seen, and each shows that it was reached."""
    page.js("document.querySelectorAll('[data-reached]').forEach((one) => delete one.dataset.reached)")
    page.js("document.activeElement.blur()")
    for _ in range(TABS_MAX):
        page.key("Tab")
        focused = page.js(FOCUSED)
        # Past the last control lies the browser's own; then it begins at the top.
        if focused is None:
            continue
        if focused["again"]:
            break
        assert focused["shown"], f"focus can't be seen on {focused['what']}"
    left = page.js(UNREACHED)
    assert not left, f"not reached by Tab: {left}"


def check_width(page):
    assert page.js("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    wide = page.js(
        "[...document.querySelectorAll('main *')].filter((one) => one.checkVisibility()"
        " && one.getBoundingClientRect().right > innerWidth + 1 && !one.closest('pre, .unseen'))"
        ".map((one) => one.outerHTML.slice(0, 90))"
    )
    assert not wide, f"wider than the screen: {wide}"
