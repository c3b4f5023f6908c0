//! Listening, and stopping.
