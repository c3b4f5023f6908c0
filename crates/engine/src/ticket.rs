//! What passes between an engine and those who ask it.

use std::time::Duration;

use hypura_grammar::ConstraintError;

use crate::generate::{GenerateError, Generated, Update};

/// Told what happens to an answer, on the engine's thread; answers whether to go on. Must not block.
pub type Sink = Box<dyn FnMut(Happening) -> bool + Send>;

/// Told the embeddings of some inputs, one each.
pub type EmbedReply = Box<dyn FnOnce(Result<Vec<Vec<f32>>, GenerateError>) + Send>;

/// What happens to an answer.
#[derive(Debug)]
pub enum Happening {
    /// On the way.
    Update(Update),
    /// The end; nothing comes after it.
    End(Result<Box<Generated>, GenerateError>),
}

/// Why a request was not taken.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// As many wait as may.
    #[error("{waiting} requests wait already; try again later")]
    Busy {
        /// So many.
        waiting: usize,
        /// When a place should be free, by how long answers took lately.
        retry_after: Duration,
    },
    /// The form that was asked for is none.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// The engine has stopped.
    #[error("internal error: the engine has stopped")]
    Gone,
}

/// Ends an answer within a token when it is dropped.
pub struct Ticket {
    cancel: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Ticket {
    /// Calls `cancel` when it is dropped.
    pub fn new(cancel: impl FnOnce() + Send + Sync + 'static) -> Ticket {
        Ticket { cancel: Some(Box::new(cancel)) }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(cancel) = self.cancel.take() {
            cancel();
        }
    }
}
