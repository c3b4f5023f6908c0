//! A conversation, and the session that it is kept in.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hypura_engine::kv::{
    LockError, ScopeFields, Session, SessionError, SessionLock, SessionMessage, SessionName,
    SessionStore,
};
use hypura_engine::llama::Token;
use hypura_engine::{Engine, Finish, Generated, Message, Transcript};

use crate::args::RunArgs;
use crate::commands::session::printable;
use crate::failure::UsageError;

/// How often an answer is kept while it is given.
const KEEP_EVERY: Duration = Duration::from_secs(5);

/// The folder of sessions, and the session that was asked for.
pub(crate) struct Sessions {
    store: SessionStore,
    /// Its name, held against other processes, and what it holds if it exists.
    asked: Option<Kept>,
    found: Option<Session>,
}

/// A session that this process has for itself.
struct Kept {
    name: SessionName,
    created_unix_s: u64,
    _lock: SessionLock,
}

/// What was said so far.
pub(crate) struct Conversation {
    pub(crate) messages: Vec<Message>,
    transcript: Transcript,
    store: Option<SessionStore>,
    kept: Option<Kept>,
    /// `None` if attention state is not kept, and so no sessions either.
    scope: Option<ScopeFields>,
    model: String,
    /// What was said last is not in its file.
    is_unkept: bool,
    /// When the answer that is being given was kept last.
    kept_at: Option<Instant>,
}

/// An answer was given, but its session could not be written.
#[derive(Debug)]
pub(crate) struct NotKept;

impl std::fmt::Display for NotKept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the conversation is not kept")
    }
}

impl Sessions {
    /// Opens the folder, and takes the session that was asked for. `None` if none was, and there is
    /// no folder.
    pub(crate) fn of(args: &RunArgs) -> anyhow::Result<Option<Sessions>> {
        let name = args.session.as_deref().map(parse).transpose()?;
        if name.is_some() && args.model.kv.options().is_none() {
            return Err(UsageError(
                "a session needs attention state to be kept; leave out --kv-cache off".into(),
            )
            .into());
        }
        let store = match (crate::home::sessions(), &name) {
            (Some(folder), Some(_)) => SessionStore::open(folder).map_err(told)?,
            (Some(folder), None) => match SessionStore::open(folder) {
                Ok(store) => store,
                // Nobody asked for one yet.
                Err(_) => return Ok(None),
            },
            (None, Some(_)) => {
                return Err(
                    UsageError("there is no folder for sessions; set HYPURA_HOME".into()).into()
                );
            }
            (None, None) => return Ok(None),
        };
        let (asked, found) = match name {
            None => (None, None),
            Some(name) => {
                let lock = lock(&store, &name)?;
                let found = store.get(&name).map_err(told)?;
                let created_unix_s = found.as_ref().map_or_else(now, |found| found.created_unix_s);
                (Some(Kept { name, created_unix_s, _lock: lock }), found)
            }
        };
        Ok(Some(Sessions { store, asked, found }))
    }

    /// Whose attention state the session goes on with.
    pub(crate) fn tenant(&self) -> Option<&str> {
        self.found.as_ref().map(|found| found.scope.tenant.as_str())
    }
}

impl Conversation {
    /// Begins with `opening`, or goes on with the session that was asked for.
    pub(crate) fn begin(
        opening: Vec<Message>,
        sessions: Option<Sessions>,
        engine: &Engine,
        model: String,
    ) -> anyhow::Result<Conversation> {
        let scope = engine.kv_fields();
        let mut conversation = Conversation {
            messages: opening,
            transcript: Transcript::default(),
            store: None,
            kept: None,
            scope: scope.cloned(),
            model,
            is_unkept: false,
            kept_at: None,
        };
        let Some(Sessions { store, asked, found }) = sessions else { return Ok(conversation) };
        if asked.is_some() && scope.is_none() {
            return Err(UsageError(
                "a session needs attention state, and it is not kept here; leave out --session"
                    .into(),
            )
            .into());
        }
        if let (Some(kept), Some(found)) = (&asked, found) {
            conversation.check_model(&kept.name, &found)?;
            // One that was cleared begins anew.
            if !found.messages.is_empty() {
                if !conversation.messages.is_empty() {
                    tracing::warn!("--system is ignored, as session {} has begun", kept.name);
                }
                conversation.take(found, engine)?;
            }
        }
        conversation.store = Some(store);
        conversation.kept = asked;
        Ok(conversation)
    }

    pub(crate) fn transcript(&self) -> &Transcript {
        &self.transcript
    }

    /// An answer was given to `prompt`, which was rendered as `text`.
    pub(crate) fn answered(
        &mut self,
        text: &str,
        prompt: Vec<Token>,
        answer: &Generated,
    ) -> anyhow::Result<()> {
        self.kept_at = None;
        self.messages.push(Message::new("assistant", answer.text.clone()));
        self.transcript = Transcript::after(text.to_owned(), prompt, answer);
        // What was stopped before it was answered was not said.
        if answer.finish == Finish::Interrupted && answer.tokens.is_empty() {
            return Ok(());
        }
        self.keep()
    }

    /// Forgets what was said, and begins anew with `opening`.
    pub(crate) fn begin_anew(&mut self, opening: Vec<Message>) -> anyhow::Result<()> {
        self.messages = opening;
        self.transcript = Transcript::default();
        match (&self.store, &self.kept) {
            // It is forgotten in its file too, as it would be with the next answer.
            (Some(store), Some(kept)) if store.exists(&kept.name) => self.keep(),
            _ => Ok(()),
        }
    }

    /// The last chance to keep what could not be kept when it was said.
    pub(crate) fn end(&mut self) -> anyhow::Result<()> {
        if self.is_unkept { self.keep() } else { Ok(()) }
    }

    /// Writes the session, if there is one.
    fn keep(&mut self) -> anyhow::Result<()> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let written = self.write(&kept.name, kept.created_unix_s);
        self.is_unkept = written.is_err();
        written.map_err(|error| error.context(NotKept))
    }

    /// Keeps it as it is now under another name, and goes on under the present one.
    pub(crate) fn save(&self, name: &str) -> anyhow::Result<String> {
        let name = self.new_name(name)?;
        let _lock = lock(self.store()?, &name)?;
        self.write(&name, now())?;
        Ok(format!("Kept as {name}."))
    }

    /// Goes on under another name.
    pub(crate) fn fork(&mut self, name: &str) -> anyhow::Result<String> {
        let name = self.new_name(name)?;
        let lock = lock(self.store()?, &name)?;
        let created_unix_s = now();
        self.write(&name, created_unix_s)?;
        let said = format!("This is {name} now.");
        self.kept = Some(Kept { name, created_unix_s, _lock: lock });
        self.is_unkept = false;
        Ok(said)
    }

    /// Goes on with another session.
    pub(crate) fn load(&mut self, name: &str, engine: &Engine) -> anyhow::Result<String> {
        let name = parse(name)?;
        if self.is_called(&name) {
            return Ok(format!("This is {name} already."));
        }
        self.end()?;
        let lock = lock(self.store()?, &name)?;
        let found = self.store()?.get(&name).map_err(told)?.ok_or_else(|| no_session(&name))?;
        self.check_model(&name, &found)?;
        let said = format!("{name}: {} messages so far.", found.messages.len());
        self.kept = Some(Kept { name, created_unix_s: found.created_unix_s, _lock: lock });
        self.take(found, engine)?;
        Ok(said)
    }

    fn take(&mut self, found: Session, engine: &Engine) -> anyhow::Result<()> {
        // What came from elsewhere is kept apart.
        engine.set_tenant(&found.scope.tenant)?;
        if let Some(scope) = &mut self.scope {
            scope.tenant = found.scope.tenant;
        }
        let message = |m: SessionMessage| Message::new(&m.role, m.content);
        self.messages = found.messages.into_iter().map(message).collect();
        self.transcript = Transcript::checked(engine, found.text, found.tokens);
        Ok(())
    }

    /// While an answer is given, what there is of it survives whatever happens, as if it had been
    /// stopped there. Not oftener than every `KEEP_EVERY`; an error waits for the end of the answer.
    pub(crate) fn in_progress(&mut self, text: &str, prompt: &[Token], so_far: &str) {
        if self.kept.is_none() || self.kept_at.is_some_and(|at| at.elapsed() < KEEP_EVERY) {
            return;
        }
        self.kept_at = Some(Instant::now());
        let before = std::mem::replace(
            &mut self.transcript,
            Transcript::of_prompt(text.to_owned(), prompt.to_vec()),
        );
        self.messages.push(Message::new("assistant", so_far));
        // It is told at the end, when it fails again.
        let _ = self.keep();
        self.messages.pop();
        self.transcript = before;
    }

    fn store(&self) -> anyhow::Result<&SessionStore> {
        let store = self.store.as_ref().filter(|_| self.scope.is_some());
        store.ok_or_else(|| {
            UsageError("sessions are not kept here; leave out --kv-cache off".into()).into()
        })
    }

    fn is_called(&self, name: &SessionName) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.name == *name)
    }

    /// A name that is not taken.
    fn new_name(&self, name: &str) -> anyhow::Result<SessionName> {
        let name = parse(name)?;
        if self.is_called(&name) {
            return Err(UsageError(format!(
                "this is session {name} already, and it is kept; name another one"
            ))
            .into());
        }
        if self.store()?.exists(&name) {
            return Err(UsageError(format!(
                "there is a session {name} already; name another one, or remove it with \
                 hypura session rm {name}"
            ))
            .into());
        }
        Ok(name)
    }

    fn check_model(&self, name: &SessionName, found: &Session) -> anyhow::Result<()> {
        match &self.scope {
            Some(scope) if scope.model != found.model_fingerprint => Err(UsageError(format!(
                "session {name} was had with another model, {}; run that one, or begin a session \
                 of another name",
                printable(&found.model_name)
            ))
            .into()),
            _ => Ok(()),
        }
    }

    fn write(&self, name: &SessionName, created_unix_s: u64) -> anyhow::Result<()> {
        let (store, Some(scope)) = (self.store()?, &self.scope) else { return Ok(()) };
        let messages = self.messages.iter().map(|message| SessionMessage {
            role: message.role.clone(),
            content: message.content.clone(),
        });
        let session = Session {
            model_name: self.model.clone(),
            model_fingerprint: scope.model.clone(),
            scope: scope.clone(),
            messages: messages.collect(),
            tokens: self.transcript.tokens().to_vec(),
            text: self.transcript.text().to_owned(),
            created_unix_s,
            updated_unix_s: now(),
        };
        store.put(name, &session).map_err(told)
    }
}

pub(crate) fn parse(name: &str) -> anyhow::Result<SessionName> {
    SessionName::parse(name).map_err(|error| UsageError(error.to_string()).into())
}

pub(crate) fn no_session(name: &SessionName) -> UsageError {
    UsageError(format!(
        "there is no session {name}; hypura session list shows those that there are"
    ))
}

/// Takes a session for this process; that somebody else has it is for the user to solve.
pub(crate) fn lock(store: &SessionStore, name: &SessionName) -> anyhow::Result<SessionLock> {
    store.lock(name).map_err(|error| match error {
        LockError::Busy { .. } => UsageError(error.to_string()).into(),
        error => told(error.into()),
    })
}

/// What went wrong with a session, in words for people: a file that is of no use is theirs to
/// replace, and the system says in its words why one can't be read or written.
pub(crate) fn told(error: SessionError) -> anyhow::Error {
    match error {
        SessionError::Io { path, source } => {
            anyhow::Error::new(source).context(format!("can't read or write {}", path.display()))
        }
        SessionError::Lock(LockError::Io { name, path, source }) => anyhow::Error::new(source)
            .context(format!("can't lock session {name} with {}", path.display())),
        error => UsageError(printable(&error.to_string())).into(),
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
