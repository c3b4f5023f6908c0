//! From the events of answers to server-sent events.

use futures_util::stream::{self, SelectAll};
use futures_util::{Stream, StreamExt};

use super::sse::Frame;
use crate::answer::{Event, Finish};
use crate::error::{ApiError, ErrorKind};
use crate::http;

/// Writes the events of one or more answers in an API's form.
pub(crate) trait Writer: Send + 'static {
    /// What comes before all events.
    fn begin(&mut self) -> Vec<Frame> {
        Vec::new()
    }

    /// An event of the answer at place `choice`.
    fn event(&mut self, choice: usize, event: Event) -> Vec<Frame>;

    /// What comes last, when all answers are complete.
    fn end(&mut self) -> Vec<Frame>;

    /// What comes last, when an answer failed. The others are broken off.
    fn failed(&mut self, error: &ApiError) -> Vec<Frame>;
}

/// What `writer` makes of the events of `answers`, as they come.
pub(crate) fn frames<A, W>(answers: Vec<A>, writer: W) -> impl Stream<Item = Frame> + Send + 'static
where
    A: Stream<Item = Result<Event, ApiError>> + Send + Unpin + 'static,
    W: Writer,
{
    let numbered = answers.into_iter().enumerate();
    let events: SelectAll<_> =
        numbered.map(|(choice, answer)| answer.map(move |event| (choice, event))).collect();
    let writing = Writing { events, writer, stage: Stage::Before };
    stream::unfold(writing, |mut writing| async move {
        let frames = writing.next().await?;
        Some((stream::iter(frames), writing))
    })
    .flatten()
}

/// What an answer that was broken off from our side is for the client: no answer.
pub(crate) fn check(event: Event) -> Result<Event, ApiError> {
    match event {
        Event::Done(summary) if summary.finish == Finish::Cancelled => Err(ApiError::new(
            ErrorKind::Unavailable,
            "the answer was broken off because the server or the model is being stopped; try again",
        )),
        event => Ok(event),
    }
}

enum Stage {
    Before,
    Within,
    After,
}

struct Writing<E, W> {
    events: E,
    writer: W,
    stage: Stage,
}

impl<S, W> Writing<SelectAll<S>, W>
where
    S: Stream<Item = (usize, Result<Event, ApiError>)> + Unpin,
    W: Writer,
{
    async fn next(&mut self) -> Option<Vec<Frame>> {
        match self.stage {
            Stage::Before => {
                self.stage = Stage::Within;
                Some(self.writer.begin())
            }
            Stage::Within => Some(self.within().await),
            Stage::After => None,
        }
    }

    async fn within(&mut self) -> Vec<Frame> {
        let Some((choice, event)) = self.events.next().await else {
            self.stage = Stage::After;
            return self.writer.end();
        };
        match event.and_then(check) {
            Ok(event) => self.writer.event(choice, event),
            Err(error) => {
                self.stage = Stage::After;
                self.events.clear();
                http::log(&error);
                self.writer.failed(&error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future;
    use serde_json::json;

    use super::super::blocks::tests::summary;
    use super::*;

    struct Names;

    impl Writer for Names {
        fn begin(&mut self) -> Vec<Frame> {
            vec![Frame::data(&json!("begin"))]
        }

        fn event(&mut self, choice: usize, event: Event) -> Vec<Frame> {
            let name = match event {
                Event::Done(_) => "done",
                _ => "event",
            };
            vec![Frame::data(&json!([choice, name]))]
        }

        fn end(&mut self) -> Vec<Frame> {
            vec![Frame::done()]
        }

        fn failed(&mut self, error: &ApiError) -> Vec<Frame> {
            vec![Frame::data(&json!(error.message))]
        }
    }

    async fn written(answers: Vec<Vec<Result<Event, ApiError>>>) -> Vec<String> {
        let answers = answers.into_iter().map(stream::iter).collect();
        let mut data = Vec::new();
        let frames = frames(answers, Names);
        frames
            .for_each(|frame| {
                data.push(frame.data);
                future::ready(())
            })
            .await;
        data
    }

    #[tokio::test]
    async fn all_answers_are_written_to_their_end() {
        let answer = || vec![Ok(Event::Begin), Ok(Event::Done(Box::new(summary(Finish::Stop))))];
        let mut data = written(vec![answer(), answer()]).await;
        assert_eq!(data.remove(0), r#""begin""#);
        assert_eq!(data.pop().unwrap(), "[DONE]");
        data.sort_unstable();
        assert_eq!(data, [r#"[0,"done"]"#, r#"[0,"event"]"#, r#"[1,"done"]"#, r#"[1,"event"]"#]);
    }

    #[tokio::test]
    async fn a_failure_ends_all_answers() {
        let data = written(vec![vec![Err(ApiError::bad("no")), Ok(Event::Begin)]]).await;
        assert_eq!(data, [r#""begin""#, r#""no""#]);
    }

    #[tokio::test]
    async fn a_cancelled_answer_is_a_failure() {
        let cancelled = Event::Done(Box::new(summary(Finish::Cancelled)));
        let data = written(vec![vec![Ok(cancelled)]]).await;
        assert!(data[1].contains("broken off"), "{data:?}");
        assert_eq!(data.len(), 2);
    }
}
