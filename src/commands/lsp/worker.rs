//! The thread that owns the model: takes the newest request of each kind, waits out the debounce, completes, answers.
//!
//! A mailbox holds at most one waiting request a kind. A newer one takes its place, or stops it if it runs: the flag is
//! looked at after every token and every prefill run, so a stop costs one of them. Whoever is stopped gets an answer too.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use lsp_types::{
    CompletionItem, CompletionItemKind, CompletionList, CompletionTextEdit, InlineCompletionItem, InlineCompletionList,
    InsertTextMode, Range, TextEdit,
};
use serde_json::Value;

use super::documents::Documents;
use super::wire::{Client, Failure, REQUEST_CANCELLED, REQUEST_FAILED};
use crate::commands::terminal;
use crate::complete::{self, CompleteError, Neighbours, Options, Recent, Request};
use crate::engine::Engine;
use crate::generate::Finish;
use crate::tokenizer::Tokenizer;

/// How a completion is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ghost text at the cursor.
    Inline,
    /// An entry of the completion list.
    List,
}

const KINDS: usize = 2;

/// One request of the client.
pub struct Task {
    pub id: Value,
    pub kind: Kind,
    pub prefix: String,
    pub suffix: String,
    /// The document's file name, for its language.
    pub file: PathBuf,
    /// The document's path, and the workspace folder around it.
    pub place: Option<(PathBuf, PathBuf)>,
    /// Text of the document that the answer replaces and starts with, and where it stands.
    pub lead: String,
    pub range: Range,
    pub not_before: Instant,
    pub stop: Stop,
}

/// Whether and why a request shall stop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicU8>);

impl Stop {
    const CANCELLED: u8 = 1;
    const SUPERSEDED: u8 = 2;
    const QUIT: u8 = 3;

    fn set(&self, why: u8) {
        // The first reason stands.
        let _ = self.0.compare_exchange(0, why, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }

    fn failure(&self) -> Option<Failure> {
        let message = match self.0.load(Ordering::Relaxed) {
            0 => return None,
            Stop::CANCELLED => "cancelled by the client",
            Stop::SUPERSEDED => "superseded by a newer request",
            _ => "the server is shutting down",
        };
        Some(Failure { code: REQUEST_CANCELLED, message: message.to_owned() })
    }
}

#[derive(Default)]
struct Waiting {
    next: [Option<Task>; KINDS],
    running: Option<(Value, Kind, Stop)>,
    quit: bool,
}

/// Where requests wait for the worker.
#[derive(Default)]
pub struct Mailbox {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a request in; returns the one whose place it took.
    pub fn submit(&self, task: Task) -> Option<Task> {
        let mut waiting = self.lock();
        if let Some((_, kind, stop)) = &waiting.running
            && *kind == task.kind
        {
            stop.set(Stop::SUPERSEDED);
        }
        let old = waiting.next[task.kind as usize].replace(task);
        self.changed.notify_one();
        old.inspect(|old| old.stop.set(Stop::SUPERSEDED))
    }

    /// Stops a request; returns it if it was still waiting.
    pub fn cancel(&self, id: &Value) -> Option<Task> {
        let mut waiting = self.lock();
        if let Some((running, _, stop)) = &waiting.running
            && running == id
        {
            stop.set(Stop::CANCELLED);
        }
        let place = waiting.next.iter_mut().find(|task| task.as_ref().is_some_and(|task| task.id == *id))?;
        place.take().inspect(|task| task.stop.set(Stop::CANCELLED))
    }

    /// Stops everything; returns what was waiting.
    pub fn stop(&self, quit: bool) -> Vec<Task> {
        let mut waiting = self.lock();
        waiting.quit |= quit;
        if let Some((_, _, stop)) = &waiting.running {
            stop.set(Stop::QUIT);
        }
        self.changed.notify_one();
        let tasks: Vec<Task> = waiting.next.iter_mut().filter_map(Option::take).collect();
        tasks.iter().for_each(|task| task.stop.set(Stop::QUIT));
        tasks
    }

    /// The next request whose time has come, which then runs; none at the end.
    fn take(&self) -> Option<Task> {
        let mut waiting = self.lock();
        loop {
            if waiting.quit {
                return None;
            }
            let first = waiting.next.iter().flatten().map(|task| task.not_before).min();
            let now = Instant::now();
            waiting = match first {
                None => self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(due) if due > now => {
                    self.changed.wait_timeout(waiting, due - now).unwrap_or_else(PoisonError::into_inner).0
                }
                Some(due) => {
                    let at = waiting.next.iter_mut().find(|task| task.as_ref().is_some_and(|t| t.not_before == due));
                    let Some(task) = at.and_then(Option::take) else { continue };
                    waiting.running = Some((task.id.clone(), task.kind, task.stop.clone()));
                    return Some(task);
                }
            };
        }
    }

    fn done(&self) {
        self.lock().running = None;
    }
}

/// Answers a request that was stopped before it ran.
pub fn turn_away(client: &Client, task: Task) {
    if let Some(failure) = task.stop.failure() {
        client.answer(&task.id, Err(failure));
    }
}

/// What the worker completes with.
pub struct Worker {
    pub engine: Engine,
    pub tokenizer: Tokenizer,
    pub options: Options,
    pub candidates: usize,
    pub verbose: bool,
    pub documents: Arc<Mutex<Documents>>,
    pub client: Arc<Client>,
}

/// What is kept from one request to the next.
#[derive(Default)]
struct Memory {
    neighbours: Neighbours,
    recent: Recent,
}

impl Worker {
    /// Works until the mailbox says that it is over.
    pub fn run(mut self, mailbox: &Mailbox) {
        let mut memory = Memory::default();
        while let Some(task) = mailbox.take() {
            let texts = self.complete(&task, &mut memory);
            mailbox.done();
            let result = match (task.stop.failure(), texts) {
                (Some(failure), _) => Err(failure),
                (None, Err(error)) => Err(Failure { code: REQUEST_FAILED, message: error.to_string() }),
                (None, Ok(texts)) => items(&task, &texts),
            };
            self.client.answer(&task.id, result);
        }
    }

    fn complete(&mut self, task: &Task, memory: &mut Memory) -> Result<Vec<String>, CompleteError> {
        let mut request = Request {
            prefix: task.prefix.clone(),
            suffix: task.suffix.clone(),
            file: Some(task.file.clone()),
            ..Request::default()
        };
        if let Some((root, open)) = &task.place {
            // Four bytes a token is a safe guess; what does not fit is left out when the prompt is built.
            let bytes = self.options.prompt_tokens * 4;
            let files = memory.neighbours.relevant(root, open, &task.prefix, &task.suffix, bytes);
            let documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
            for file in files.iter_mut() {
                if let Some(text) = documents.at(&root.join(&file.path)) {
                    text.clone_into(&mut file.text);
                }
            }
            request.files.clone_from(files);
            request.repository = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let parts: Vec<_> = open.components().map(|part| part.as_os_str().to_string_lossy()).collect();
            request.path = Some(parts.join("/"));
        }
        let left = memory.recent.left(&request);
        if !left.is_empty() {
            self.log(format_args!("request {}: the rest of the last completion", task.id));
            return Ok(left);
        }
        let mut texts: Vec<String> = vec![];
        let mut whole = true;
        let mut options = self.options.clone();
        for candidate in 0..self.candidates as u64 {
            options.sampling.seed = self.options.sampling.seed.map(|seed| seed.wrapping_add(candidate));
            let stopped = || task.stop.is_set();
            let found = complete::complete(&mut self.engine, &self.tokenizer, &request, &options, stopped)?;
            self.log(format_args!(
                "request {}: {} prompt tokens, {} computed, {} generated, {} ms{}",
                task.id,
                found.prompt_tokens,
                found.prompt_tokens - found.cached_tokens,
                found.generated_tokens,
                found.elapsed.as_millis(),
                if task.stop.is_set() { ", stopped" } else { "" }
            ));
            whole &= found.finish != Finish::Interrupted;
            if !found.text.trim().is_empty() && !texts.contains(&found.text) {
                texts.push(found.text);
            }
            if task.stop.is_set() {
                break;
            }
        }
        if whole {
            memory.recent.keep(request, texts.clone());
        }
        Ok(texts)
    }

    fn log(&self, line: std::fmt::Arguments) {
        if self.verbose {
            // A lost line of a log is no reason to fail.
            let _ = writeln!(terminal::stderr(), "rynd: {line}");
        }
    }
}

/// The answer as the protocol wants it.
fn items(task: &Task, texts: &[String]) -> Result<Value, Failure> {
    let whole = |text: &String| format!("{}{text}", task.lead);
    let value = match task.kind {
        Kind::Inline => {
            let item = |text| InlineCompletionItem {
                insert_text: whole(text),
                filter_text: None,
                range: Some(task.range),
                command: None,
                insert_text_format: None,
            };
            serde_json::to_value(InlineCompletionList { items: texts.iter().map(item).collect() })
        }
        Kind::List => {
            let item = |(i, text): (usize, &String)| CompletionItem {
                label: label(&whole(text)),
                kind: Some(CompletionItemKind::SNIPPET),
                detail: Some("rynd".to_owned()),
                sort_text: Some(format!("{i:03}")),
                filter_text: Some(whole(text)),
                insert_text_mode: Some(InsertTextMode::AS_IS),
                text_edit: Some(CompletionTextEdit::Edit(TextEdit { range: task.range, new_text: whole(text) })),
                ..CompletionItem::default()
            };
            // The next key may lead elsewhere: the client shall ask again.
            serde_json::to_value(CompletionList {
                is_incomplete: true,
                items: texts.iter().enumerate().map(item).collect(),
            })
        }
    };
    value.map_err(|error| Failure { code: REQUEST_FAILED, message: error.to_string() })
}

/// The first line that says something, shortened.
fn label(text: &str) -> String {
    const MOST: usize = 60;
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let more = line.chars().count() > MOST || text.trim().lines().count() > 1;
    let short: String = line.chars().take(MOST).collect();
    if more { short + " ..." } else { short }
}
