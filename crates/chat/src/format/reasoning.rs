//! The marks that models put around reasoning, and those without meaning for a reader.

/// Marks around reasoning.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    /// All of these occur in the template.
    template: &'static [&'static str],
    /// Begins the reasoning.
    pub(crate) open: &'static str,
    /// Ends it.
    pub(crate) close: &'static str,
}

const fn marks(
    template: &'static [&'static str],
    open: &'static str,
    close: &'static str,
) -> Marks {
    Marks { template, open, close }
}

/// gpt-oss. Its channels are read by `parse/channel.rs`.
static HARMONY: Marks = marks(&[], "<|channel|>analysis<|message|>", "<|end|>");

/// In the order in which they are tried.
static MARKS: &[Marks] = &[
    marks(&["[/THINK]"], "[THINK]", "[/THINK]"),
    marks(&["seed:think"], "<seed:think>", "</seed:think>"),
    marks(&["<|START_THINKING|>"], "<|START_THINKING|>", "<|END_THINKING|>"),
    marks(&["<|channel>"], "<|channel>thought\n", "<channel|>"),
    marks(&["<|inner_prefix|>"], "<|inner_prefix|>", "<|inner_suffix|>"),
    marks(&["◁/think▷"], "◁think▷", "◁/think▷"),
    marks(&["<|open|>", "<|close|>"], "<|open|>think<|sep|>", "<|close|>think<|sep|>"),
    marks(&["<|begin|>assistant", "<|think|>"], "<|think|>", "<|end|>"),
    marks(&["mm:think"], "<mm:think>", "</mm:think>"),
    marks(&[":opensource", "<think{}>"], "<think:opensource>", "</think:opensource>"),
    marks(&["[BEGIN FINAL RESPONSE]"], "Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]"),
    marks(&["<think>"], "<think>", "</think>"),
    marks(&["</think>"], "<think>", "</think>"),
];

/// The marks of a model with this template, if it reasons.
pub(crate) fn detect(template: &str, channels: bool) -> Option<&'static Marks> {
    if channels {
        return Some(&HARMONY);
    }
    MARKS.iter().find(|marks| marks.template.iter().all(|text| template.contains(text)))
}

/// Marks around an answer, with no meaning for a reader.
const WRAPPERS: [&str; 12] = [
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<|START_TEXT|>",
    "<|END_TEXT|>",
    "<|open|>response<|sep|>",
    "<|close|>response<|sep|>",
    "<|close|>message<|sep|>",
    "<|begin|>assistant",
    "<|content|>",
    "<response>",
    "</response>",
    "[END FINAL RESPONSE]",
];

/// Tokens that end an answer.
const STOPS: [&str; 27] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|eom|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<turn|>",
    "<|assistant_end|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|message_sep|>",
    "<|end_of_msg|>",
    "<|role_end|>",
    "<｜end▁of▁sentence｜>",
    "<end_of_sentence>",
    "<seed:eos>",
    "[e~[",
    "<SPECIAL_12>",
    "<|tool_response>",
    "<sep>",
    "</assistant>",
    "</s>",
];

/// The wrappers that occur in a template. Those of plain words count only where they are marks.
pub(crate) fn wrappers(template: &str) -> Vec<&'static str> {
    let granite =
        template.contains("<think></think>") && template.contains("<response></response>");
    let occurs = |mark: &&str| match *mark {
        "<response>" | "</response>" => granite,
        // Put together by the template's macros.
        "<|open|>response<|sep|>" | "<|close|>response<|sep|>" | "<|close|>message<|sep|>" => {
            template.contains("<|open|>")
        }
        "<|content|>" => template.contains("<|begin|>assistant"),
        mark => template.contains(mark),
    };
    WRAPPERS.into_iter().filter(occurs).collect()
}

/// The tokens that end an answer by a model with this template.
pub(crate) fn stops(template: &str) -> Vec<String> {
    STOPS.into_iter().filter(|stop| template.contains(stop)).map(str::to_owned).collect()
}
