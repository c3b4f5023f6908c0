//! An application without models, for tests of what is around them.

use std::sync::Arc;

use hypura_hub::{Entry, Stores};

use crate::answer::KeepAlive;
use crate::app::{App, Shared};
use crate::config::Config;
use crate::models::{Budget, Loader, ModelError, Models, Needs, Runner, Want};

/// An application that has no models.
pub(crate) fn app(config: Config) -> Shared {
    let (loader, budget) = (Arc::new(LoadsNothing), Budget::default());
    let models = Models::new(Stores::default(), loader, KeepAlive::Forever, budget);
    App::new(config, models)
}

/// Loads nothing.
struct LoadsNothing;

impl Loader for LoadsNothing {
    fn needs(&self, entry: &Entry, _want: &Want) -> Result<Needs, ModelError> {
        Err(ModelError::Other(format!("{} is not for loading", entry.name)))
    }

    fn load(
        &self,
        entry: &Entry,
        _want: &Want,
        _budget: Budget,
        _progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Arc<dyn Runner>, ModelError> {
        Err(ModelError::Other(format!("{} is not for loading", entry.name)))
    }
}
