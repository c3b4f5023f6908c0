// Tells screen readers of an answer while it grows: whole sentences, now and then, in a live region
// of its own. The answer itself is not live, for that would be one announcement per token.

const PAUSE_MS = 4000;
const CHARS_MAX = 2000;

/** Speaks one answer through `region` (aria-live). */
export function startSpeaking(region) {
  let spoken = 0;
  let last = Date.now();
  region.textContent = "Waiting for the answer.";

  function say(text) {
    region.textContent = text.slice(0, CHARS_MAX);
    last = Date.now();
  }

  return {
    /** The answer is now `text`. */
    grown(text) {
      if (Date.now() - last < PAUSE_MS) return;
      const end = Math.max(text.lastIndexOf(". "), text.lastIndexOf("\n"), text.lastIndexOf("? ")) + 1;
      if (end <= spoken) return;
      say(text.slice(spoken, end));
      spoken = end;
    },
    /** The answer is over; errors speak for themselves. */
    ended({ content, error, stopped }) {
      const how = stopped ? "Answer stopped." : "End of the answer.";
      if (!error) say(`${content.slice(spoken).slice(0, CHARS_MAX - 40)} ${how}`);
    },
  };
}
