use std::thread;

use crate::error::ConstraintError;

/// Bytes of stack for what recurses into schemas, `llguidance`'s compiler above all; as much as
/// [`crate::SCHEMA_DEPTH_MAX`] and [`crate::REFERENCE_REACH_MAX`] can ask of a debug build. What
/// isn't reached takes no memory.
const STACK_BYTES: usize = 64 << 20;

/// Runs `work` on a thread of its own that has enough stack, and waits for it.
pub(crate) fn with_stack<T: Send>(
    work: impl FnOnce() -> Result<T, ConstraintError> + Send,
) -> Result<T, ConstraintError> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|error| ConstraintError::failed(&error.to_string()))?
            .join()
            .unwrap_or_else(|_| Err(ConstraintError::failed("the compiler panicked")))
    })
}
