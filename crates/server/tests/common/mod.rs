//! A server over a scripted model: what it answers is what a test says.
#![allow(dead_code)] // each test file uses some of it

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use hypura_chat::ChatTemplate;
use hypura_engine::llama::Token;
use hypura_engine::{
    EmbedReply, EngineStatus, Finish, GenerateError, GenerateRequest, Generated, Happening,
    Refused, Sink, Ticket, TokenChoice, Update,
};
use hypura_hub::{Entry, Stores};
use hypura_server::answer::KeepAlive;
use hypura_server::models::{
    Budget, Facts, Loader, ModelError, Models, Needs, Runner, Tiers, Want,
};
use hypura_server::{App, Config, Shared, router};
use serde_json::Value;
use tower::ServiceExt;

/// Bytes are tokens; these texts are tokens of their own.
const CONTROL: [&str; 4] = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"];
const FIRST_CONTROL: Token = 1000;
pub(crate) const N_CTX: usize = 4096;

/// What the model says next: pieces of text, and how it ends.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) pieces: Vec<String>,
    pub(crate) finish: Finish,
    pub(crate) fails: Option<GenerateError>,
    /// Wait for the test's word before each piece.
    pub(crate) is_held: bool,
}

impl Script {
    pub(crate) fn say(pieces: &[&str]) -> Script {
        Script {
            pieces: pieces.iter().map(|&piece| piece.to_owned()).collect(),
            finish: Finish::EndOfText,
            fails: None,
            is_held: false,
        }
    }
}

/// What a test knows of the scripted model.
#[derive(Default)]
pub(crate) struct Stage {
    pub(crate) scripts: Mutex<VecDeque<Script>>,
    /// What was asked.
    pub(crate) requests: Mutex<Vec<GenerateRequest>>,
    /// The prompts as text.
    pub(crate) prompts: Mutex<Vec<String>>,
    /// Answers that were ended by whoever asked.
    pub(crate) cancelled: Mutex<usize>,
    /// How often a model was loaded.
    pub(crate) loads: Mutex<Vec<String>>,
    /// Within what, each time.
    pub(crate) budgets: Mutex<Vec<Budget>>,
    /// What models need, and where their bytes are, if a test says it.
    pub(crate) needs: Mutex<Option<Needs>>,
    pub(crate) tiers: Mutex<Tiers>,
    /// What the engine has counted.
    pub(crate) status: Mutex<EngineStatus>,
    pub(crate) is_busy: Mutex<bool>,
    pub(crate) has_stopped: Mutex<bool>,
}

pub(crate) struct Scripted {
    facts: Facts,
    stage: Arc<Stage>,
}

pub(crate) fn tokenize(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    'text: while let Some(first) = rest.as_bytes().first() {
        for (token, control) in (FIRST_CONTROL..).zip(CONTROL) {
            if let Some(after) = rest.strip_prefix(control) {
                tokens.push(token);
                rest = after;
                continue 'text;
            }
        }
        let len = rest.chars().next().map_or(1, char::len_utf8);
        tokens.extend(rest.as_bytes()[..len].iter().map(|&byte| Token::from(byte)));
        let _ = first;
        rest = &rest[len..];
    }
    tokens
}

pub(crate) fn piece(token: Token) -> Vec<u8> {
    match usize::try_from(token - FIRST_CONTROL) {
        Ok(control) => CONTROL.get(control).map(|c| c.as_bytes().to_vec()).unwrap_or_default(),
        Err(_) => u8::try_from(token).map(|byte| vec![byte]).unwrap_or_default(),
    }
}

pub(crate) fn text_of(tokens: &[Token]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|&token| piece(token)).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Runner for Scripted {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn tokenize(&self, text: &str, _add_special: bool) -> Vec<Token> {
        tokenize(text)
    }

    fn spells(&self, tokens: &[Token], text: &str) -> bool {
        text_of(tokens) == text
    }

    fn piece(&self, token: Token) -> Vec<u8> {
        piece(token)
    }

    fn is_boundary(&self, token: Token) -> bool {
        token >= FIRST_CONTROL
    }

    fn generate(&self, request: GenerateRequest, mut sink: Sink) -> Result<Ticket, Refused> {
        if *self.stage.is_busy.lock().unwrap() {
            return Err(Refused::Busy { waiting: 64, retry_after: Duration::from_secs(7) });
        }
        if *self.stage.has_stopped.lock().unwrap() {
            return Err(Refused::Gone);
        }
        let script = self.stage.scripts.lock().unwrap().pop_front();
        let script = script.unwrap_or_else(|| Script::say(&["Hello", " there"]));
        self.stage.requests.lock().unwrap().push(request.clone());
        self.stage.prompts.lock().unwrap().push(text_of(&request.prompt));
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let stage = Arc::clone(&self.stage);
        std::thread::spawn(move || {
            sink(Happening::Update(Update::Begin));
            if let Some(error) = script.fails {
                sink(Happening::End(Err(error)));
                return;
            }
            let most = request.max_tokens.unwrap_or(usize::MAX);
            let mut finish = script.finish;
            let mut said = String::new();
            for (i, text) in script.pieces.iter().enumerate() {
                if i >= most {
                    finish = Finish::Length;
                    break;
                }
                if script.is_held {
                    // Until whoever asked goes away.
                    let _ = is_done.recv();
                    *stage.cancelled.lock().unwrap() += 1;
                    finish = Finish::Interrupted;
                    break;
                }
                if let Some(n) = request.logprobs {
                    let token = tokenize(text).first().copied().unwrap_or_default();
                    let top = (0..n).map(|i| (token, text.clone().into_bytes(), -0.5 - i as f32));
                    sink(Happening::Update(Update::Token(Box::new(TokenChoice {
                        token,
                        bytes: text.clone().into_bytes(),
                        logprob: -0.5,
                        top: top.collect(),
                    }))));
                }
                said.push_str(text);
                sink(Happening::Update(Update::Text(text.clone())));
            }
            let mut generated = Generated::new(said.clone(), tokenize(&said), finish);
            generated.prompt_tokens = request.prompt.len();
            generated.reused_tokens = request.prompt.len() / 2;
            sink(Happening::End(Ok(Box::new(generated))));
        });
        Ok(Ticket::new(move || drop(done)))
    }

    fn embed(&self, inputs: Vec<Vec<Token>>, reply: EmbedReply) -> Result<Ticket, Refused> {
        #[allow(clippy::cast_precision_loss)]
        let vectors = inputs.iter().map(|tokens| vec![tokens.len() as f32, 1.0, 0.0, 0.0]);
        reply(Ok(vectors.collect()));
        Ok(Ticket::new(|| {}))
    }

    fn status(&self) -> EngineStatus {
        self.stage.status.lock().unwrap().clone()
    }

    fn settle(&self, _at_most: Duration) {}
}

/// ChatML that knows tools and thinking.
pub(crate) const TEMPLATE: &str = "\
{%- if tools %}<|im_start|>system\nTools: {{ tools | tojson }}\n<tool_call>{}</tool_call><|im_end|>\n{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}
{%- for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}";

struct ScriptedLoader(Arc<Stage>);

impl Loader for ScriptedLoader {
    fn needs(&self, _entry: &Entry, _want: &Want) -> Result<Needs, ModelError> {
        let needs = *self.0.needs.lock().unwrap();
        Ok(needs.unwrap_or(Needs { resident_bytes: 100, free_bytes: 1 << 30, ..Needs::default() }))
    }

    fn load(
        &self,
        entry: &Entry,
        want: &Want,
        budget: Budget,
        _progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<Arc<dyn Runner>, ModelError> {
        self.0.loads.lock().unwrap().push(entry.name.clone());
        self.0.budgets.lock().unwrap().push(budget);
        let facts = Facts {
            template: ChatTemplate::new(TEMPLATE, "", "").unwrap(),
            n_ctx: want.num_ctx.map_or(N_CTX, |n| n as usize),
            parallel: 4,
            generates: true,
            embedding_length: 4,
            memory_bytes: 100,
            weight_bytes: 80,
            architecture: "llama".into(),
            mode: "full-resident".into(),
            load_time: Duration::ZERO,
            tiers: *self.0.tiers.lock().unwrap(),
        };
        Ok(Arc::new(Scripted { facts, stage: Arc::clone(&self.0) }))
    }
}

/// A server without a socket.
pub(crate) struct Served {
    pub(crate) app: Shared,
    pub(crate) stage: Arc<Stage>,
    folder: tempfile::TempDir,
}

/// What was answered.
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: axum::http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answered {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Lines of NDJSON.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Events of SSE: name (empty if it has none) and data.
    pub(crate) fn events(&self) -> Vec<(String, String)> {
        let text = self.text();
        let blocks = text.split("\n\n").filter(|block| block.lines().any(|l| !l.starts_with(':')));
        let of = |block: &str, key: &str| {
            let lines = block.lines().filter_map(|l| l.strip_prefix(key));
            lines.map(str::trim_start).collect::<Vec<_>>().join("\n")
        };
        blocks
            .filter(|block| !block.trim().is_empty())
            .map(|block| (of(block, "event:"), of(block, "data:")))
            .collect()
    }
}

impl Served {
    /// With a model called `demo`.
    pub(crate) fn new() -> Served {
        Served::with(Config::default())
    }

    pub(crate) fn with(config: Config) -> Served {
        Served::within(config, Budget { memory_bytes: Some(1 << 30), gpu_memory_bytes: None })
    }

    pub(crate) fn within(config: Config, budget: Budget) -> Served {
        let folder = tempfile::tempdir().unwrap();
        let recipe = hypura_testkit::tiny::find("llama").unwrap();
        let model = recipe.model(recipe.default_mix, 1).unwrap();
        model.write(&folder.path().join("demo.gguf")).unwrap();
        model.write(&folder.path().join("other.gguf")).unwrap();
        let stores = Stores {
            folders: vec![folder.path().to_owned()],
            own: Some(folder.path().join("own")),
            ..Stores::default()
        };
        let stage = Arc::new(Stage::default());
        let loader = Arc::new(ScriptedLoader(Arc::clone(&stage)));
        let keep = KeepAlive::For(Duration::from_secs(300));
        let models = Models::new(stores, loader, keep, budget);
        Served { app: App::new(config, models), stage, folder }
    }

    /// What the model says to the next requests, one each.
    pub(crate) fn script(&self, script: Script) {
        self.stage.scripts.lock().unwrap().push_back(script);
    }

    /// The last prompt.
    pub(crate) fn prompt(&self) -> String {
        self.stage.prompts.lock().unwrap().last().cloned().unwrap_or_default()
    }

    /// The last request.
    pub(crate) fn request(&self) -> GenerateRequest {
        self.stage.requests.lock().unwrap().last().cloned().unwrap()
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Answered {
        let response = router(&self.app).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Answered { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answered {
        self.send(request(Method::GET, path, Body::empty())).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answered {
        self.send(request(Method::POST, path, Body::from(body.to_string()))).await
    }
}

/// A request as a client on this machine sends it.
pub(crate) fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "127.0.0.1:11434")
        .header("content-type", "application/json")
        .body(body)
        .unwrap()
}
