//! A Language Server on standard input and output: completion at the cursor for editors.
//!
//! One thread reads messages, one (here) keeps documents and routes requests, one (`worker`) owns the model; so a cancel
//! is heard while the model runs. It speaks `textDocument/inlineCompletion` (ghost text, protocol 3.18) and
//! `textDocument/completion`. Standard output carries the protocol alone, what there is to tell goes to stderr. It ends
//! on `exit` or with its input, and on nothing else that a client sends.

mod documents;
mod wire;
mod worker;

use std::io::{BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lsp_types::{
    CompletionOptions, InitializeResult, InlineCompletionOptions, OneOf, Position, PositionEncodingKind, Range,
    SelectedCompletionInfo, ServerCapabilities, ServerInfo, TextDocumentContentChangeEvent, TextDocumentSyncCapability,
    TextDocumentSyncKind, TextDocumentSyncOptions, WorkspaceFoldersServerCapabilities, WorkspaceServerCapabilities,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::documents::{Documents, Encoding};
use self::wire::{
    Client, Failure, INVALID_PARAMS, INVALID_REQUEST, Incoming, METHOD_NOT_FOUND, NOT_INITIALIZED, PARSE_ERROR,
    REQUEST_FAILED,
};
use self::worker::{Kind, Mailbox, Stop, Task, Worker, turn_away};
use crate::commands::terminal;
use crate::complete::Options;
use crate::engine::Engine;
use crate::tokenizer::Tokenizer;

/// How to serve.
pub struct Config {
    pub options: Options,
    pub candidates: usize,
    /// A request waits so long for a newer one.
    pub debounce: Duration,
    pub verbose: bool,
}

/// Serves one client until it leaves. The exit code is 0 after an orderly shutdown.
pub fn serve(engine: Engine, tokenizer: Tokenizer, config: Config) -> Result<ExitCode> {
    let client = Arc::new(Client::new(Box::new(std::io::stdout())));
    let documents = Arc::new(Mutex::new(Documents::default()));
    let mailbox = Arc::new(Mailbox::default());
    let worker = Worker {
        engine,
        tokenizer,
        options: config.options,
        candidates: config.candidates,
        verbose: config.verbose,
        documents: Arc::clone(&documents),
        client: Arc::clone(&client),
    };
    let thread = std::thread::Builder::new().name("completion".into()).spawn({
        let mailbox = Arc::clone(&mailbox);
        move || worker.run(&mailbox)
    });
    let thread = thread.context("can not start a thread")?;
    let mut server = Server {
        client,
        documents,
        mailbox,
        debounce: config.debounce,
        verbose: config.verbose,
        encoding: Encoding::default(),
        folders: vec![],
        state: State::Fresh,
    };
    let result = server.listen(&mut BufReader::new(std::io::stdin()));
    server.mailbox.stop(true);
    if thread.join().is_err() {
        server.log("the completion thread failed");
    }
    result?;
    Ok(if server.state == State::ShutDown || server.client.is_gone() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fresh,
    Ready,
    ShutDown,
}

struct Server {
    client: Arc<Client>,
    documents: Arc<Mutex<Documents>>,
    mailbox: Arc<Mailbox>,
    debounce: Duration,
    verbose: bool,
    encoding: Encoding,
    folders: Vec<PathBuf>,
    state: State,
}

impl Server {
    fn listen(&mut self, input: &mut BufReader<std::io::Stdin>) -> Result<()> {
        while !self.client.is_gone() {
            match wire::read(input).context("can not read standard input")? {
                Incoming::End => break,
                Incoming::Broken(why) => {
                    self.log(&why);
                    self.client.answer(&Value::Null, Err(Failure { code: PARSE_ERROR, message: why }));
                }
                Incoming::Message(message) => {
                    if self.handle(message).is_break() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn handle(&mut self, mut message: Value) -> std::ops::ControlFlow<()> {
        let method = message.get("method").and_then(Value::as_str).map(str::to_owned);
        let id = message.get("id").cloned();
        let params = message.get_mut("params").map(Value::take).unwrap_or_default();
        match (method, id) {
            (Some(method), None) if method == "exit" => return std::ops::ControlFlow::Break(()),
            (Some(method), None) => self.notified(&method, params),
            (Some(method), Some(id)) if id.is_number() || id.is_string() => self.asked(id, &method, params),
            // An answer: we ask nothing, so it is none of ours.
            (None, Some(_)) if message.get("result").is_some() || message.get("error").is_some() => {}
            _ => {
                let message = "a message is neither a request nor a notification".to_owned();
                self.client.answer(&Value::Null, Err(Failure { code: INVALID_REQUEST, message }));
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    fn asked(&mut self, id: Value, method: &str, params: Value) {
        let failure = |code, message: &str| Err(Failure { code, message: message.to_owned() });
        let result = match (self.state, method) {
            (State::Fresh, "initialize") => self.initialize(params),
            (State::Fresh, _) => failure(NOT_INITIALIZED, "the server waits for 'initialize'"),
            (State::ShutDown, _) => failure(INVALID_REQUEST, "the server was shut down"),
            (State::Ready, "shutdown") => {
                self.state = State::ShutDown;
                self.mailbox.stop(false).into_iter().for_each(|task| turn_away(&self.client, task));
                Ok(Value::Null)
            }
            (State::Ready, "textDocument/inlineCompletion") => match self.task(&id, Kind::Inline, params) {
                Ok(task) => return self.submit(task),
                Err(failure) => Err(failure),
            },
            (State::Ready, "textDocument/completion") => match self.task(&id, Kind::List, params) {
                Ok(task) => return self.submit(task),
                Err(failure) => Err(failure),
            },
            (State::Ready, "initialize") => failure(INVALID_REQUEST, "the server is initialized already"),
            (State::Ready, _) => failure(METHOD_NOT_FOUND, &format!("unknown method '{method}'")),
        };
        self.client.answer(&id, result);
    }

    fn submit(&self, task: Task) {
        if let Some(old) = self.mailbox.submit(task) {
            turn_away(&self.client, old);
        }
    }

    fn initialize(&mut self, params: Value) -> Result<Value, Failure> {
        let params: Initialize = parse(params)?;
        self.encoding = Encoding::negotiate(&params.capabilities.general.position_encodings);
        let folders = params.workspace_folders.unwrap_or_default().into_iter().map(|folder| folder.uri);
        let root = params.root_uri.filter(|_| folders.len() == 0);
        self.folders = folders.chain(root).filter_map(|uri| documents::path(&uri)).collect();
        self.state = State::Ready;
        let capabilities = ServerCapabilities {
            position_encoding: Some(self.encoding.kind()),
            text_document_sync: Some(TextDocumentSyncCapability::Options(TextDocumentSyncOptions {
                open_close: Some(true),
                change: Some(TextDocumentSyncKind::INCREMENTAL),
                ..TextDocumentSyncOptions::default()
            })),
            completion_provider: Some(CompletionOptions {
                // Where a name, an argument or a value begins; letters ask by themselves.
                trigger_characters: Some([".", ":", "(", "[", "{", ",", "=", ">", " "].map(str::to_owned).to_vec()),
                ..CompletionOptions::default()
            }),
            inline_completion_provider: Some(OneOf::Right(InlineCompletionOptions::default())),
            workspace: Some(WorkspaceServerCapabilities {
                workspace_folders: Some(WorkspaceFoldersServerCapabilities {
                    supported: Some(true),
                    change_notifications: Some(OneOf::Left(true)),
                }),
                file_operations: None,
            }),
            ..ServerCapabilities::default()
        };
        let info = ServerInfo { name: "rynd".into(), version: Some(env!("CARGO_PKG_VERSION").into()) };
        serde_json::to_value(InitializeResult { capabilities, server_info: Some(info), offset_encoding: None })
            .map_err(|error| Failure { code: REQUEST_FAILED, message: error.to_string() })
    }

    fn notified(&mut self, method: &str, params: Value) {
        if self.state != State::Ready {
            return;
        }
        let result = match method {
            "$/cancelRequest" => parse(params).map(|Cancel { id }| {
                if let Some(task) = self.mailbox.cancel(&id) {
                    turn_away(&self.client, task);
                }
            }),
            "textDocument/didOpen" => {
                parse(params).map(|DidOpen { text_document: Opened { uri, text } }| self.documents().open(uri, text))
            }
            "textDocument/didChange" => parse(params).map(|DidChange { text_document, content_changes }| {
                if !self.documents().change(&text_document.uri, content_changes, self.encoding) {
                    self.log(&format!("{} changed, but is not open", text_document.uri));
                }
            }),
            "textDocument/didClose" => {
                parse(params).map(|DidClose { text_document }| self.documents().close(&text_document.uri))
            }
            "workspace/didChangeWorkspaceFolders" => parse(params).map(|DidChangeFolders { event }| {
                let paths = |folders: Vec<DocumentId>| -> Vec<PathBuf> {
                    folders.iter().filter_map(|folder| documents::path(&folder.uri)).collect()
                };
                let removed = paths(event.removed);
                self.folders.retain(|folder| !removed.contains(folder));
                self.folders.extend(paths(event.added));
            }),
            _ => Ok(()),
        };
        if let Err(failure) = result {
            self.log(&format!("{method}: {}", failure.message));
        }
    }

    /// What a request for completion means here and now.
    fn task(&self, id: &Value, kind: Kind, params: Value) -> Result<Task, Failure> {
        let At { text_document: DocumentId { uri }, position, context } = parse(params)?;
        let documents = self.documents();
        let Some(text) = documents.text(&uri) else {
            return Err(Failure { code: INVALID_PARAMS, message: format!("{uri} is not open") });
        };
        let at = self.encoding.offset(text, position);
        let context = context.unwrap_or_default();
        let mut prefix = text[..at].to_owned();
        let (lead, range) = match (kind, context.selected_completion_info) {
            // The list's selected entry counts as typed.
            (Kind::Inline, Some(selected)) => {
                prefix.truncate(self.encoding.offset(text, selected.range.start).min(at));
                prefix.push_str(&selected.text);
                (selected.text, selected.range)
            }
            (Kind::Inline, None) => (String::new(), Range::new(position, position)),
            // Clients filter entries by the word at the cursor.
            (Kind::List, _) => {
                let word = word(&prefix);
                let width = self.encoding.width(word).min(position.character);
                let start = Position { character: position.character - width, ..position };
                (word.to_owned(), Range::new(start, position))
            }
        };
        // 1: the user asked for it with a key.
        let wait = if context.trigger_kind == Some(1) && kind == Kind::Inline { Duration::ZERO } else { self.debounce };
        Ok(Task {
            id: id.clone(),
            kind,
            suffix: text[at..].to_owned(),
            prefix,
            file: PathBuf::from(uri.rsplit('/').next().unwrap_or_default()),
            place: self.place(&uri),
            lead,
            range,
            not_before: Instant::now() + wait,
            stop: Stop::default(),
        })
    }

    /// The innermost folder around a document, and its path in there.
    fn place(&self, uri: &str) -> Option<(PathBuf, PathBuf)> {
        let path = documents::path(uri)?;
        let around = self.folders.iter().filter(|folder| path.starts_with(folder));
        let root = around.max_by_key(|folder| folder.components().count())?;
        Some((root.clone(), path.strip_prefix(root).ok()?.to_owned()))
    }

    fn documents(&self) -> MutexGuard<'_, Documents> {
        self.documents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self, line: &str) {
        if self.verbose {
            // A lost line of a log is no reason to fail.
            let _ = writeln!(terminal::stderr(), "rynd: {line}");
        }
    }
}

/// The identifier that ends a text.
fn word(text: &str) -> &str {
    let start = text.char_indices().rev().take_while(|(_, c)| c.is_alphanumeric() || *c == '_').last();
    start.map_or("", |(at, _)| &text[at..])
}

fn parse<T: DeserializeOwned>(params: Value) -> Result<T, Failure> {
    serde_json::from_value(params).map_err(|error| Failure { code: INVALID_PARAMS, message: error.to_string() })
}

// What is read of the protocol's messages. URIs stay text: a strict parser would refuse what editors send.

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Initialize {
    #[serde(default)]
    capabilities: ClientCapabilities,
    workspace_folders: Option<Vec<DocumentId>>,
    root_uri: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ClientCapabilities {
    general: General,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct General {
    position_encodings: Vec<PositionEncodingKind>,
}

#[derive(Deserialize)]
struct DocumentId {
    uri: String,
}

#[derive(Deserialize)]
struct Cancel {
    id: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DidOpen {
    text_document: Opened,
}

#[derive(Deserialize)]
struct Opened {
    uri: String,
    text: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DidChange {
    text_document: DocumentId,
    content_changes: Vec<TextDocumentContentChangeEvent>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DidClose {
    text_document: DocumentId,
}

#[derive(Deserialize)]
struct DidChangeFolders {
    event: FoldersChange,
}

#[derive(Deserialize)]
struct FoldersChange {
    #[serde(default)]
    added: Vec<DocumentId>,
    #[serde(default)]
    removed: Vec<DocumentId>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct At {
    text_document: DocumentId,
    position: Position,
    context: Option<CompletionContext>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CompletionContext {
    trigger_kind: Option<u32>,
    selected_completion_info: Option<SelectedCompletionInfo>,
}
