//! From an ask to the events of its answer.
