//! `POST /api/pull`: bringing a model here.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use hypura_hub::{Progress, PullError, Puller};
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, Sender};

use super::error::{OllamaError, of_pull};
use super::manage::check_allowed;
use super::request::model_name;
use super::status::{CancelOnDrop, SUCCESS, Update, respond, step};
use crate::app::Shared;
use crate::error::ApiError;
use crate::http::parse;

/// Models that are brought here at a time; who comes later waits.
const PULLS_MAX: usize = 3;
/// Updates that wait to be sent. Counts of bytes beyond it are left out.
const UPDATES_MAX: usize = 32;

static PULLS: Semaphore = Semaphore::const_new(PULLS_MAX);

/// A request, as it arrives. `insecure` and credentials mean nothing here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PullRequest {
    model: Option<String>,
    name: Option<String>,
    stream: Option<bool>,
}

impl PullRequest {
    /// The model's name, and whether to answer in lines.
    ///
    /// # Errors
    /// When there is no name.
    pub(super) fn resolve(self) -> Result<(String, bool), ApiError> {
        let given = |name: Option<String>| name.filter(|name| !name.is_empty());
        let model = model_name(given(self.model).or_else(|| given(self.name)))?;
        Ok((model, self.stream.unwrap_or(true)))
    }
}

/// Brings a model here. Who goes away ends it, and what was downloaded stays for the next time.
pub(super) async fn pull(State(app): State<Shared>, body: Bytes) -> Result<Response, OllamaError> {
    check_allowed(&app)?;
    let (model, stream) = parse::<PullRequest>(&body)?.resolve()?;
    let (sender, updates) = mpsc::channel(UPDATES_MAX);
    let cancel = CancelOnDrop::default();
    tokio::spawn(run(app, model, sender, Arc::clone(&cancel.0)));
    Ok(respond(updates, cancel, stream).await?)
}

async fn run(app: Shared, model: String, sender: Sender<Update>, cancel: Arc<AtomicBool>) {
    let permit = match PULLS.try_acquire() {
        Ok(permit) => Ok(permit),
        Err(_) => {
            let _ = sender.send(Ok(step("waiting for other downloads"))).await;
            tokio::select! {
                permit = PULLS.acquire() => permit,
                () = sender.closed() => return,
            }
        }
    };
    let work = tokio::task::spawn_blocking(move || {
        let outcome = pull_now(&app, &model, &cancel, &mut |progress| tell(&sender, progress));
        if let Err(error) = outcome {
            let _ = sender.blocking_send(Err(error));
        }
    });
    // A panic closes the channel, which is told there.
    let _ = work.await;
    drop(permit);
}

fn pull_now(
    app: &Shared,
    model: &str,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), ApiError> {
    let stores = app.models.stores();
    match Puller::new(app.config.pull.clone()).pull(model, stores, cancel, progress) {
        Ok(_) => Ok(()),
        // Clients pull what they need before they ask. What is here already they get.
        Err(PullError::OllamaRegistry { .. }) if stores.find(model).is_ok() => {
            progress(step("pulling manifest"));
            progress(step(SUCCESS));
            Ok(())
        }
        Err(error) => Err(of_pull(&error, model)),
    }
}

/// Sends an update. Steps wait for their place; counts of bytes don't, since more will come.
fn tell(sender: &Sender<Update>, progress: Progress) {
    // A client that is gone ends the pull by the flag.
    let _ = match progress.total {
        Some(total) if progress.completed != Some(total) => sender.try_send(Ok(progress)).is_ok(),
        _ => sender.blocking_send(Ok(progress)).is_ok(),
    };
}
