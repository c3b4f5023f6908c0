//! An answer as a list of blocks: reasoning, text, calls of tools, in their order.

use futures_util::{Stream, StreamExt};
use hypura_chat::Delta;

use super::stream::check;
use crate::answer::{Event, Finish, Summary, TokenLogprob};
use crate::error::ApiError;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Block {
    /// What the model thought.
    Reasoning {
        /// All of it.
        text: String,
    },
    /// What it said.
    Text {
        /// All of it.
        text: String,
        /// Its tokens, if they were asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// A tool that it calls.
    Call {
        /// Names the call.
        id: String,
        /// The tool.
        name: String,
        /// One JSON object as text; incomplete if the answer was broken off within.
        arguments: String,
    },
}

impl Block {
    /// The block as it was when it began.
    pub(crate) fn emptied(&self) -> Block {
        match self {
            Block::Reasoning { .. } => Block::Reasoning { text: String::new() },
            Block::Text { .. } => Block::Text { text: String::new(), logprobs: Vec::new() },
            Block::Call { id, name, .. } => {
                Block::Call { id: id.clone(), name: name.clone(), arguments: String::new() }
            }
        }
    }
}

/// What an event did to the blocks.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// The block at this place began. At most one is open at a time.
    Open(usize),
    /// The open block grew.
    Grow {
        /// Its place.
        index: usize,
        /// By this.
        text: String,
        /// Of these tokens, if it is text and they were asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// The open block is complete.
    Close(usize),
}

/// Puts the deltas of an answer together.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    blocks: Vec<Block>,
    /// Whether the last block is open.
    open: bool,
    /// Tokens whose text did not come yet.
    pending: Vec<TokenLogprob>,
    /// The block that was open when the answer became too long.
    cut: Option<usize>,
}

impl Blocks {
    /// Takes one event. Tokens of reasoning and of calls are dropped: what APIs call log
    /// probabilities of the content is those of text.
    pub(crate) fn push(&mut self, event: Event) -> Vec<Step> {
        match event {
            Event::Delta(delta) => self.delta(delta),
            Event::Logprobs(tokens) => {
                self.pending.extend(tokens);
                Vec::new()
            }
            Event::Done(summary) => self.end(&summary.finish).into_iter().collect(),
            Event::Begin => Vec::new(),
        }
    }

    /// The blocks so far.
    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The place of the block that was broken off by a bound.
    pub(crate) fn cut(&self) -> Option<usize> {
        self.cut
    }

    fn end(&mut self, finish: &Finish) -> Option<Step> {
        if self.open && *finish == Finish::Length {
            self.cut = self.blocks.len().checked_sub(1);
        }
        self.close()
    }

    fn delta(&mut self, delta: Delta) -> Vec<Step> {
        let mut steps = Vec::new();
        match delta {
            Delta::Reasoning(text) if !text.is_empty() => {
                self.pending.clear();
                if !matches!(self.last(), Some(Block::Reasoning { .. })) {
                    self.begin(Block::Reasoning { text: String::new() }, &mut steps);
                }
                self.grow(text, &mut steps);
            }
            Delta::Content(text) if !text.is_empty() => {
                if !matches!(self.last(), Some(Block::Text { .. })) {
                    let block = Block::Text { text: String::new(), logprobs: Vec::new() };
                    self.begin(block, &mut steps);
                }
                self.grow(text, &mut steps);
            }
            Delta::ToolCallBegin { id, name, .. } => {
                self.pending.clear();
                self.begin(Block::Call { id, name, arguments: String::new() }, &mut steps);
            }
            Delta::ToolCallArguments { json, .. } if !json.is_empty() => {
                self.pending.clear();
                if matches!(self.last(), Some(Block::Call { .. })) {
                    self.grow(json, &mut steps);
                }
            }
            Delta::ToolCallEnd { .. } => {
                self.pending.clear();
                if matches!(self.last(), Some(Block::Call { .. })) {
                    steps.extend(self.close());
                }
            }
            Delta::Reasoning(_) | Delta::Content(_) | Delta::ToolCallArguments { .. } => {}
        }
        steps
    }

    /// The open block.
    fn last(&self) -> Option<&Block> {
        self.blocks.last().filter(|_| self.open)
    }

    fn begin(&mut self, block: Block, steps: &mut Vec<Step>) {
        steps.extend(self.close());
        steps.push(Step::Open(self.blocks.len()));
        self.blocks.push(block);
        self.open = true;
    }

    fn grow(&mut self, more: String, steps: &mut Vec<Step>) {
        let index = self.blocks.len().saturating_sub(1);
        let mut tokens = Vec::new();
        match self.blocks.last_mut() {
            Some(Block::Reasoning { text }) => text.push_str(&more),
            Some(Block::Text { text, logprobs }) => {
                tokens = std::mem::take(&mut self.pending);
                text.push_str(&more);
                logprobs.extend_from_slice(&tokens);
            }
            Some(Block::Call { arguments, .. }) => arguments.push_str(&more),
            None => return,
        }
        steps.push(Step::Grow { index, text: more, logprobs: tokens });
    }

    fn close(&mut self) -> Option<Step> {
        std::mem::take(&mut self.open).then(|| Step::Close(self.blocks.len().saturating_sub(1)))
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Collected {
    /// What it is made of.
    pub(crate) blocks: Vec<Block>,
    /// The place of the block that was broken off by a bound.
    pub(crate) cut: Option<usize>,
    /// Its numbers.
    pub(crate) summary: Box<Summary>,
}

impl Collected {
    /// All text.
    pub(crate) fn text(&self) -> String {
        let text = self.blocks.iter().filter_map(|block| match block {
            Block::Text { text, .. } => Some(text.as_str()),
            _ => None,
        });
        text.collect()
    }

    /// All reasoning.
    pub(crate) fn reasoning(&self) -> String {
        let reasoning = self.blocks.iter().filter_map(|block| match block {
            Block::Reasoning { text } => Some(text.as_str()),
            _ => None,
        });
        reasoning.collect()
    }

    /// The tokens of all text.
    pub(crate) fn logprobs(&self) -> impl Iterator<Item = &TokenLogprob> {
        self.blocks.iter().flat_map(|block| match block {
            Block::Text { logprobs, .. } => logprobs.as_slice(),
            _ => &[],
        })
    }
}

/// Waits for the end of an answer.
///
/// # Errors
/// When it fails, or is broken off.
pub(crate) async fn collect<A>(mut answer: A) -> Result<Collected, ApiError>
where
    A: Stream<Item = Result<Event, ApiError>> + Unpin,
{
    let mut blocks = Blocks::default();
    while let Some(event) = answer.next().await {
        match check(event?)? {
            Event::Done(summary) => {
                blocks.end(&summary.finish);
                return Ok(Collected { cut: blocks.cut, blocks: blocks.blocks, summary });
            }
            event => drop(blocks.push(event)),
        }
    }
    Err(ApiError::internal("the answer has no end"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use futures_util::stream;

    use super::*;

    /// Numbers of an answer to 10 tokens, 4 of them known, with 7 tokens, 2 of them reasoning.
    pub(crate) fn summary(finish: Finish) -> Summary {
        Summary {
            finish,
            prompt_tokens: 10,
            reused_tokens: 4,
            generated_tokens: 7,
            reasoning_tokens: 2,
            context: Vec::new(),
            load_time: Duration::ZERO,
            queue_time: Duration::ZERO,
            prompt_time: Duration::ZERO,
            ttft: Duration::ZERO,
            decode_time: Duration::ZERO,
            total_time: Duration::ZERO,
        }
    }

    pub(crate) fn reasoning(text: &str) -> Event {
        Event::Delta(Delta::Reasoning(text.to_owned()))
    }

    pub(crate) fn content(text: &str) -> Event {
        Event::Delta(Delta::Content(text.to_owned()))
    }

    /// A whole call, its arguments in two fragments.
    pub(crate) fn call(index: usize, name: &str, fragments: [&str; 2]) -> Vec<Event> {
        let id = format!("call_{index}");
        let arguments = |json: &str| Delta::ToolCallArguments { index, json: json.to_owned() };
        vec![
            Event::Delta(Delta::ToolCallBegin { index, id, name: name.to_owned() }),
            Event::Delta(arguments(fragments[0])),
            Event::Delta(arguments(fragments[1])),
            Event::Delta(Delta::ToolCallEnd { index }),
        ]
    }

    pub(crate) fn logprob(text: &str) -> TokenLogprob {
        TokenLogprob {
            token: 1,
            bytes: text.as_bytes().to_vec(),
            logprob: -0.5,
            top: vec![(1, text.as_bytes().to_vec(), -0.5), (2, vec![0xff], f32::NEG_INFINITY)],
        }
    }

    pub(crate) fn done(finish: Finish) -> Event {
        Event::Done(Box::new(summary(finish)))
    }

    /// The events of an answer that thinks, speaks, and calls two tools.
    pub(crate) fn everything() -> Vec<Event> {
        let mut events =
            vec![Event::Begin, reasoning("hm"), reasoning("m"), content("Hel"), content("lo")];
        events.extend(call(0, "look", [r#"{"x":"#, "1}"]));
        events.extend(call(1, "go", ["{", "}"]));
        events.push(done(Finish::ToolCalls));
        events
    }

    fn grow(index: usize, text: &str) -> Step {
        Step::Grow { index, text: text.to_owned(), logprobs: Vec::new() }
    }

    #[test]
    fn blocks_open_one_after_the_other() {
        let mut blocks = Blocks::default();
        let steps: Vec<Step> =
            everything().into_iter().flat_map(|event| blocks.push(event)).collect();
        let expected = [
            Step::Open(0),
            grow(0, "hm"),
            grow(0, "m"),
            Step::Close(0),
            Step::Open(1),
            grow(1, "Hel"),
            grow(1, "lo"),
            Step::Close(1),
            Step::Open(2),
            grow(2, r#"{"x":"#),
            grow(2, "1}"),
            Step::Close(2),
            Step::Open(3),
            grow(3, "{"),
            grow(3, "}"),
            Step::Close(3),
        ];
        assert_eq!(steps, expected);
    }

    #[tokio::test]
    async fn an_answer_is_collected() {
        let answer = stream::iter(everything().into_iter().map(Ok));
        let collected = collect(answer).await.unwrap();
        assert_eq!(collected.text(), "Hello");
        assert_eq!(collected.reasoning(), "hmm");
        assert_eq!(collected.blocks.len(), 4);
        let look = Block::Call {
            id: "call_0".into(),
            name: "look".into(),
            arguments: r#"{"x":1}"#.into(),
        };
        assert_eq!(collected.blocks[2], look);
    }

    #[test]
    fn tokens_belong_to_the_text_that_follows() {
        let mut blocks = Blocks::default();
        blocks.push(Event::Logprobs(vec![logprob("t")]));
        blocks.push(reasoning("t"));
        blocks.push(Event::Logprobs(vec![logprob("a")]));
        blocks.push(Event::Logprobs(vec![logprob("b")]));
        blocks.push(content("ab"));
        let text = Block::Text { text: "ab".into(), logprobs: vec![logprob("a"), logprob("b")] };
        assert_eq!(blocks.blocks()[1], text);
    }

    #[tokio::test]
    async fn an_open_block_may_be_cut() {
        let cut = async |finish| {
            let events = [reasoning("a"), content("b"), done(finish)];
            collect(stream::iter(events.map(Ok))).await.unwrap().cut
        };
        assert_eq!(cut(Finish::Length).await, Some(1));
        assert_eq!(cut(Finish::Stop).await, None);
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_an_error() {
        assert!(collect(stream::iter([Ok(Event::Begin)])).await.is_err());
        assert!(collect(stream::iter([Ok(done(Finish::Cancelled))])).await.is_err());
    }
}
