//! A call as a name, and arguments as a JSON object.

use super::call::{Event, NAME_BYTES_MAX, Step, Until, is_name};
use super::scan::{Scan, Scanner};

/// The marks of such a syntax.
#[derive(Debug, Clone, Copy)]
pub(super) struct NamedMarks {
    /// Before the name; what comes before that is the id, if it isn't part of the mark.
    pub(super) before: &'static str,
    /// Between the name and an id.
    pub(super) id: &'static str,
    /// Behind name and id.
    pub(super) head_end: &'static str,
    /// Behind the call.
    pub(super) close: &'static str,
}

#[derive(Debug, Clone)]
enum State {
    Head(Until),
    /// Before `{`.
    Arguments,
    Passing(Scanner),
    /// Behind the arguments, with what came since.
    Tail(String),
}

/// Reads such a call.
#[derive(Debug, Clone)]
pub(super) struct NamedCall {
    marks: NamedMarks,
    state: State,
}

impl NamedCall {
    pub(super) fn new(marks: NamedMarks) -> NamedCall {
        NamedCall { marks, state: State::Head(Until::default()) }
    }

    /// A call whose name is known already; its arguments follow.
    pub(super) fn arguments() -> NamedCall {
        let marks = NamedMarks { before: "", id: "", head_end: "", close: "" };
        NamedCall { marks, state: State::Arguments }
    }

    pub(super) fn feed(&mut self, c: char, out: &mut Vec<Event>) -> Step {
        match &mut self.state {
            State::Head(until) => {
                let head = until.feed(c, self.marks.head_end);
                match head {
                    Some(head) => self.head(&head, out),
                    None if until.text().len() > NAME_BYTES_MAX + self.marks.head_end.len() => {
                        Step::Failed
                    }
                    None => Step::More,
                }
            }
            State::Arguments if c.is_whitespace() => Step::More,
            State::Arguments if c == '{' => {
                let mut scanner = Scanner::new();
                scanner.feed(c);
                self.state = State::Passing(scanner);
                out.push(Event::Arguments(c.to_string()));
                Step::More
            }
            State::Arguments => Step::Failed,
            State::Passing(scanner) => match scanner.feed(c) {
                Scan::Bad | Scan::Past => Step::Failed,
                scan => {
                    match out.last_mut() {
                        Some(Event::Arguments(text)) => text.push(c),
                        _ => out.push(Event::Arguments(c.to_string())),
                    }
                    match scan {
                        Scan::Last if self.marks.close.is_empty() => Step::done(),
                        Scan::Last => {
                            self.state = State::Tail(String::new());
                            Step::More
                        }
                        _ => Step::More,
                    }
                }
            },
            State::Tail(tail) => {
                tail.push(c);
                // Blanks and the end of a fence.
                let rest = tail.trim_start_matches(|c: char| c.is_whitespace() || c == '`');
                if rest == self.marks.close {
                    return Step::done();
                }
                match self.marks.close.starts_with(rest) {
                    true => Step::More,
                    // The mark is missing; the arguments were complete.
                    false => Step::Done(std::mem::take(tail)),
                }
            }
        }
    }

    pub(super) fn finish(&mut self) -> Step {
        match &self.state {
            State::Tail(_) => Step::done(),
            _ => Step::Failed,
        }
    }

    fn head(&mut self, head: &str, out: &mut Vec<Event>) -> Step {
        let NamedMarks { before, id, .. } = self.marks;
        let head = head.trim();
        let (early_id, rest) = match head.split_once(before) {
            Some((early, rest)) if !before.is_empty() => (Some(early.trim()), rest),
            _ => (None, head),
        };
        let (name, late_id) = match rest.split_once(id).filter(|_| !id.is_empty()) {
            // Kimi's id is name and number, with all that is before it.
            Some((name, _)) if id == ":" => (name, Some(head)),
            Some((name, late)) => (name, Some(late.trim())),
            None => (rest, None),
        };
        let name = name.trim();
        if !is_name(name) {
            return Step::Failed;
        }
        let id = late_id.or(early_id).filter(|id| !id.is_empty()).map(str::to_owned);
        out.push(Event::Begin { name: name.to_owned(), id });
        self.state = State::Arguments;
        Step::More
    }
}
