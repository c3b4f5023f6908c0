// The little that is needed to build nodes. Text from models and users only ever becomes text nodes.

export const byId = (id) => document.getElementById(id);

/** Makes an element: properties that the element has are set, the others become attributes. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Sets text only where it differs, so that screen readers and selections are left in peace. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A button that copies what `text()` returns, and says for a moment how that went. */
export function copyButton(text, what) {
  const button = h("button", { type: "button", className: "link", ariaLabel: `Copy ${what}` }, "Copy");
  button.addEventListener("click", async () => {
    button.textContent = (await copy(text())) ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text);
  }
}

// Pages from plain http on another host have no clipboard interface.
function copyBySelection(text) {
  const before = document.activeElement;
  const area = h("textarea", { className: "unseen", value: text });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before?.focus();
  return done;
}

/** Opens `sheet` (a popover) below `button` on each click, within the window. */
export function attachSheet(button, sheet, onOpen) {
  button.popoverTargetElement = sheet;
  sheet.addEventListener("beforetoggle", (event) => {
    if (event.newState !== "open") return;
    onOpen?.();
    const place = button.getBoundingClientRect();
    sheet.style.top = `${place.bottom + 6}px`;
    sheet.style.right = `${Math.max(8, innerWidth - place.right)}px`;
  });
}

/** The context of `canvas`, sized to the pixels of the screen, and its size in CSS pixels. */
export function crisp(canvas, width, height) {
  const scale = devicePixelRatio || 1;
  const [pixelsX, pixelsY] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== pixelsX || canvas.height !== pixelsY) {
    canvas.width = pixelsX;
    canvas.height = pixelsY;
  }
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, pixelsX, pixelsY);
  return { context, scale, pixelsX, pixelsY };
}
