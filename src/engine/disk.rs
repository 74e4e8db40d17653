//! The disk tier of sequences: branches that make way, and those that are left at the end, go to files, and come back when
//! reading them beats computing.
//!
//! What is in the files and how they are found is `cache`'s; here pages pass between the executors and there. Writing is
//! behind: the engine's thread copies a page out of the caches and goes on. What is not worth a second of computing is not
//! written. A file that can not be read, or is another layout's, costs nothing but its tokens: they are computed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::past::{Costs, Past, Victim, Want};
use super::session::Session;
use super::split::Split;
use super::{Engine, EngineConfig, EngineError};
use crate::backend::Backend;
use crate::cache::{CacheStore, Group, Layout, Model, ModelKey, Options, Piece, Writer};
use crate::gguf::Gguf;
use crate::plan::{PAGE_TOKENS, Plan};
use crate::tokenizer::Tokenizer;

/// Seconds of computing below which nothing is written.
const WORTH_SECONDS: f64 = 1.0;
/// Bytes a second that reading back certainly makes; measured when it happened.
const READS_AT: f64 = 200e6;
/// Pages on their way to the disk, at most.
const QUEUE_BYTES: usize = 256 << 20;
/// At the end, the longest that unwritten pages are waited for.
const LAST_WRITES: Duration = Duration::from_secs(20);

/// Where branches are kept between runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    pub dir: PathBuf,
    /// Bytes of all files of all models.
    pub cap_bytes: u64,
    /// Also what costs less to compute than to write or to read.
    pub always: bool,
}

/// A model's files.
pub(super) struct Disk {
    store: Arc<CacheStore>,
    writer: Writer,
    spelling: Spelling,
    reads_at: f64,
    always: bool,
}

/// The bytes of every token, so that text finds them again. Control tokens have bytes of their own that no text has.
struct Spelling {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Spelling {
    fn new(tokenizer: &Tokenizer) -> Spelling {
        let mut spelling = Spelling { bytes: vec![], ends: vec![] };
        for id in 0..tokenizer.n_vocab() as u32 {
            tokenizer.spell_apart(id, &mut spelling.bytes);
            spelling.ends.push(spelling.bytes.len() as u32);
        }
        spelling
    }

    fn of(&self, id: u32) -> &[u8] {
        let at = id as usize;
        let Some(&end) = self.ends.get(at) else { return &[] };
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.bytes[start as usize..end as usize]
    }
}

impl Disk {
    /// Gives what a branch holds up to `tokens` to the writer, as far as it is not there yet and worth it.
    fn save(&self, backend: &mut Split, session: &Session, costs: &Costs, windows: &[Option<usize>]) {
        let tokens = session.resumable(session.ids.len());
        let ids = &session.ids[..tokens];
        let there = self.store.lookup(ids).map_or(0, |hit| hit.tokens);
        let start = there / PAGE_TOKENS * PAGE_TOKENS;
        let seconds = costs.seconds(start, tokens);
        let worth = self.always || costs.seconds(there, tokens) >= WORTH_SECONDS;
        if tokens <= there || !worth || !self.store.writes() {
            return;
        }
        let lens: Vec<u32> = ids[start..].iter().map(|&id| self.spelling.of(id).len() as u32).collect();
        let text: Vec<u8> = ids[start..].iter().flat_map(|&id| self.spelling.of(id)).copied().collect();
        let first_pages: Vec<usize> = windows
            .iter()
            .map(|window| match window {
                None => start / PAGE_TOKENS,
                Some(window) => ((tokens + 1).saturating_sub(*window) / PAGE_TOKENS).max(start / PAGE_TOKENS),
            })
            .collect();
        let state_bytes = backend.state_bytes();
        let marks = || session.marks.iter().filter(|mark| mark.position > start && mark.position <= tokens);
        let kept = || marks().filter_map(|mark| Some((mark.position, mark.state.as_ref()?)));
        let states: Vec<(usize, usize)> = kept().map(|(position, _)| (position, state_bytes)).collect();
        let piece = Piece { ids, start, lens: &lens, text: &text, first_pages: &first_pages, states: &states, seconds };
        let Ok(Some(mut saving)) = self.writer.begin(&piece) else { return };
        for (group, &first) in first_pages.iter().enumerate() {
            for page in first..tokens.div_ceil(PAGE_TOKENS) {
                let mut bytes = Vec::with_capacity(backend.page_bytes(group));
                let saved = backend.save_page(group, session.tables[group].numbers[page], &mut bytes);
                // A device that fails is told where it is needed.
                if saved.is_err() || !saving.page(group, page, bytes) {
                    return;
                }
            }
        }
        for (number, (_, state)) in kept().enumerate() {
            let mut bytes = Vec::with_capacity(state_bytes);
            if backend.save_state(state.place(), &mut bytes).is_err() || !saving.state(number, bytes) {
                return;
            }
        }
        saving.finish();
    }

    /// Before a victim is lost.
    pub(super) fn lose(
        &self,
        backend: &mut Split,
        past: &Past,
        victim: Victim,
        costs: &Costs,
        windows: &[Option<usize>],
    ) {
        match victim {
            Victim::Tail { branch, .. } => self.save(backend, past.session(branch), costs, windows),
            // The branch is still there, and what lies behind its last mark too.
            Victim::Mark { .. } => {}
        }
    }
}

impl Engine {
    /// Keeps branches in files from now on. That it can not is told, and costs only what they would have saved.
    pub fn keep_on_disk(&mut self, options: &DiskOptions, tokenizer: &Tokenizer) {
        if options.cap_bytes == 0 {
            return;
        }
        match self.open_disk(options, tokenizer) {
            Ok(disk) => self.disk = Some(disk),
            Err(e) => (self.config.notice)(&format!("conversations are not kept on disk: {e}")),
        }
    }

    fn open_disk(&self, options: &DiskOptions, tokenizer: &Tokenizer) -> Result<Disk, String> {
        let backend = self.backend.as_ref().ok_or("the model is not loaded")?;
        let group = |(at, group): (usize, &crate::plan::PageGroup)| Group {
            page_bytes: backend.page_bytes(at),
            window: group.window.map(|window| window.saturating_sub(1)),
        };
        let layout = Layout {
            page_tokens: PAGE_TOKENS,
            groups: self.plan.groups.iter().enumerate().map(group).collect(),
            states: self.memory.shape().states,
        };
        let path = self.gguf.path();
        let name = path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let model = Model { key: model_key(&self.gguf, &self.plan, &self.config), name, layout };
        let notice = self.config.notice;
        let store_options =
            Options { cap_bytes: options.cap_bytes, notice: Arc::new(move |message: &str| notice(message)) };
        let store = CacheStore::open(&options.dir, model, store_options).map_err(|e| e.to_string())?;
        let writer = Writer::new(Arc::clone(&store), QUEUE_BYTES, LAST_WRITES).map_err(|e| e.to_string())?;
        Ok(Disk { store, writer, spelling: Spelling::new(tokenizer), reads_at: READS_AT, always: options.always })
    }

    /// A sequence that begins with as much of these ids as is remembered, in memory or, where reading beats computing, on disk;
    /// and the tokens of it that were read.
    pub fn recall(&mut self, ids: &[u32]) -> (Session, usize) {
        let mut session = self.attach(ids);
        let held = session.ids().len();
        let read = self.read_back(ids, &mut session).unwrap_or(0);
        (session, read.saturating_sub(held))
    }

    /// Reads what the files hold more than the session; the tokens that it then holds.
    fn read_back(&mut self, ids: &[u32], session: &mut Session) -> Option<usize> {
        let held = session.ids().len();
        let store = Arc::clone(&self.disk.as_ref()?.store);
        let Disk { reads_at, always, .. } = *self.disk.as_ref()?;
        let hit = store.lookup(&ids[..ids.len() - 1])?;
        let bytes = hit.bytes() as f64 * (hit.tokens - held.min(hit.tokens)) as f64 / hit.tokens.max(1) as f64;
        let pays = always || self.memory.costs().seconds(held, hit.tokens) >= bytes / reads_at;
        if hit.tokens <= held || !pays {
            return None;
        }
        let began = Instant::now();
        // Whole pages that are in memory stay there.
        let start = held / PAGE_TOKENS;
        let windowed = self.memory.shape().is_marked();
        let mut new = if windowed { Session::new() } else { session.share(start * PAGE_TOKENS, false) };
        new.adopt(self.memory.shape());
        let result = self.read_pages(&hit, &mut new).and_then(|()| self.read_state(&hit, &mut new, &ids[..hit.tokens]));
        if result.is_err() {
            return None;
        }
        if let Some(disk) = &mut self.disk {
            let rate = bytes / began.elapsed().as_secs_f64().max(1e-6);
            disk.reads_at = (disk.reads_at + rate) / 2.0;
        }
        *session = new;
        Some(hit.tokens)
    }

    fn read_pages(&mut self, hit: &crate::cache::Hit, new: &mut Session) -> Result<(), EngineError> {
        for group in 0..new.tables.len() {
            let wanted = hit.pages(group);
            let mut bytes = vec![0; super::split(&mut self.backend)?.page_bytes(group)];
            while new.tables[group].pages.len() < wanted.start {
                new.tables[group].push_missing();
            }
            for page in new.tables[group].pages.len()..wanted.end {
                let place = self.take(Want::Page(group))?;
                self.fit_cache()?;
                hit.read_page(group, page, &mut bytes)?;
                super::split(&mut self.backend)?.load_page(group, place.place(), &bytes)?;
                new.tables[group].push(place);
            }
        }
        Ok(())
    }

    fn read_state(&mut self, hit: &crate::cache::Hit, new: &mut Session, ids: &[u32]) -> Result<(), EngineError> {
        new.ids = ids.to_vec();
        let Some(len) = hit.state_bytes() else { return Ok(()) };
        let place = self.take(Want::State)?;
        let mut bytes = vec![0; len];
        hit.read_state(&mut bytes)?;
        super::split(&mut self.backend)?.load_state(place.place(), &bytes)?;
        new.mark(Some(place), true);
        Ok(())
    }

    /// Writes what is remembered and not on the disk yet.
    pub fn flush_to_disk(&mut self) {
        let (Some(disk), Some(backend)) = (&self.disk, &mut self.backend) else { return };
        let (costs, windows) = (self.memory.costs(), &self.memory.shape().windows);
        for session in self.memory.past().sessions() {
            disk.save(backend, session, &costs, windows);
        }
    }

    /// Waits until what was given to the disk is there; false when that took too long.
    pub fn wait_for_disk(&self, within: Duration) -> bool {
        self.disk.as_ref().is_none_or(|disk| disk.writer.flush(within))
    }

    /// Text that was kept, as the ids it was computed from, and the bytes of it that they stand for.
    pub fn known_text(&self, text: &[u8]) -> Option<(Vec<u32>, usize)> {
        let hit = self.disk.as_ref()?.store.lookup_text(text)?;
        Some((hit.ids, hit.bytes))
    }
}

/// Tells apart what must not be mixed: weights, their placement, and how caches are laid out and computed.
fn model_key(gguf: &Gguf, plan: &Plan, config: &EngineConfig) -> ModelKey {
    let mut sum = Sha256::new();
    for tensor in gguf.tensors() {
        sum.update(tensor.name.as_bytes());
        sum.update(format!("{:?} {:?} {}", tensor.format, tensor.shape, tensor.offset));
        // A few bytes of each: another file of the same shapes differs in some of them.
        let bytes = gguf.bytes(tensor);
        let middle = bytes.len() / 2;
        sum.update(&bytes[middle..bytes.len().min(middle + 64)]);
    }
    let remembers = plan.steps.iter().filter(|step| !step.op.memories().is_empty());
    let sides: Vec<String> = remembers.map(|step| format!("{:?}", step.side)).collect();
    let settings = format!("{:?} {} {:?} {sides:?}", config.kv, config.exact, config.rope);
    ModelKey::of(&[b"rynd pages 1", &sum.finalize()[..], settings.as_bytes()])
}
