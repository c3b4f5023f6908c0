//! What can be asked: models that lie here, those that are loaded, and which gives way.
