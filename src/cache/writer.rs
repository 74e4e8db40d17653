//! Writing behind: a thread and a bounded queue, so that who computes waits for the disk only when it is far behind.
//!
//! Pages are handed over one by one, each as its own buffer; no more than `queue_bytes` of them wait. Several pieces may be
//! written at a time. The first write that fails ends the thread's work: what waits is dropped, which is told once, and the
//! store goes on reading.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::error::{CacheError, Result};
use super::format::{Header, Place};
use super::write::Draft;
use super::{CacheStore, Piece};

/// The thread that writes a store's segments. Dropped, it finishes what was handed over whole, or gives up in time.
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    stop_within: Duration,
}

/// A piece whose records are being handed over. Dropped before [`Saving::finish`], nothing of it stays.
pub struct Saving {
    shared: Arc<Shared>,
    id: u64,
    finished: bool,
}

struct Shared {
    store: Arc<CacheStore>,
    queue_bytes: usize,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(u64, Job)>, // piece
    bytes: usize,
    next_id: u64,
    busy: bool,
    /// Nothing more is taken, and at this moment all is given up.
    stop_at: Option<Instant>,
    /// The thread has ended.
    ended: bool,
}

enum Job {
    Begin(Box<Header>),
    Record(Place, Vec<u8>),
    Finish,
    Abandon,
}

impl Writer {
    /// Starts the thread. At most `queue_bytes` of pages wait (but always one); at drop at most `stop_within` is waited.
    pub fn new(store: Arc<CacheStore>, queue_bytes: usize, stop_within: Duration) -> Result<Writer> {
        let folder = store.folder.clone();
        let shared = Arc::new(Shared { store, queue_bytes, queue: Mutex::default(), changed: Condvar::new() });
        let thread = std::thread::Builder::new().name("rynd cache".to_owned()).spawn({
            let shared = shared.clone();
            move || shared.work()
        });
        let thread = Some(thread.map_err(CacheError::io(&folder))?);
        Ok(Writer { shared, thread, stop_within })
    }

    /// Begins a piece; `None` when it is there already, would never fit, or nothing is written any more.
    pub fn begin(&self, piece: &Piece<'_>) -> Result<Option<Saving>> {
        let store = &self.shared.store;
        if !store.writes() {
            return Ok(None);
        }
        let header = store.header(piece)?;
        if header.prefix.file_bytes > store.options.cap_bytes || store.stored(&header.prefix.name) {
            return Ok(None);
        }
        let mut queue = self.shared.lock();
        if queue.stop_at.is_some() || queue.ended {
            return Ok(None);
        }
        queue.next_id += 1;
        let id = queue.next_id;
        queue.jobs.push_back((id, Job::Begin(Box::new(header))));
        self.shared.changed.notify_all();
        Ok(Some(Saving { shared: self.shared.clone(), id, finished: false }))
    }

    /// Bytes of pages that wait to be written.
    pub fn waiting_bytes(&self) -> usize {
        self.shared.lock().bytes
    }

    /// Waits until everything handed over so far is on the disk or given up; false when that took too long.
    pub fn flush(&self, within: Duration) -> bool {
        let queue = self.shared.lock();
        let waits = |queue: &mut Queue| !queue.ended && (queue.busy || !queue.jobs.is_empty());
        let waited = self.shared.changed.wait_timeout_while(queue, within, waits);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.stop_at = Some(Instant::now() + self.stop_within);
        self.shared.changed.notify_all();
        let waited = self.shared.changed.wait_timeout_while(queue, self.stop_within, |queue| !queue.ended);
        let ended = waited.unwrap_or_else(PoisonError::into_inner).0.ended;
        // A thread that hangs in a dying disk is left alone; what it leaves is swept at the next start.
        if let Some(thread) = self.thread.take().filter(|_| ended) {
            let _ = thread.join();
        }
    }
}

impl Saving {
    /// The record of a page of a group, counted from position 0; in any order, each once. Waits while the queue is full. False:
    /// the piece is given up, and the rest need not be brought.
    pub fn page(&mut self, group: usize, page: usize, bytes: Vec<u8>) -> bool {
        self.record(Place::Page(group, page), bytes)
    }

    /// The state of this number among the piece's states.
    pub fn state(&mut self, state: usize, bytes: Vec<u8>) -> bool {
        self.record(Place::State(state), bytes)
    }

    /// Whether a record of these bytes would be taken without waiting.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.shared.has_room(&self.shared.lock(), bytes)
    }

    /// All records were brought; the segment is complete when they are on the disk.
    pub fn finish(mut self) -> bool {
        self.finished = true;
        self.shared.push(self.id, Job::Finish)
    }

    fn record(&mut self, place: Place, bytes: Vec<u8>) -> bool {
        let queue = self.shared.lock();
        let full = |queue: &mut Queue| !queue.closed() && !self.shared.has_room(queue, bytes.len());
        let mut queue = self.shared.changed.wait_while(queue, full).unwrap_or_else(PoisonError::into_inner);
        if queue.closed() {
            return false;
        }
        queue.bytes += bytes.len();
        queue.jobs.push_back((self.id, Job::Record(place, bytes)));
        self.shared.changed.notify_all();
        true
    }
}

impl Drop for Saving {
    fn drop(&mut self) {
        if !self.finished {
            self.shared.push(self.id, Job::Abandon);
        }
    }
}

impl Queue {
    fn closed(&self) -> bool {
        self.ended || self.stop_at.is_some()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, queue: &Queue, bytes: usize) -> bool {
        queue.bytes == 0 || queue.bytes + bytes <= self.queue_bytes
    }

    fn push(&self, id: u64, job: Job) -> bool {
        let mut queue = self.lock();
        if queue.closed() {
            return false;
        }
        queue.jobs.push_back((id, job));
        self.changed.notify_all();
        true
    }

    /// The thread: until it is stopped, or a write fails.
    fn work(&self) {
        let mut drafts = HashMap::new();
        while let Some((id, job)) = self.next() {
            match self.run(&mut drafts, id, job) {
                Ok(()) => {}
                // Somebody emptied the folder; the next piece may fare better.
                Err(CacheError::Gone { .. }) => {
                    drafts.remove(&id);
                }
                Err(e @ (CacheError::Io { .. } | CacheError::Bad { .. })) => {
                    self.store.stop_writing(&e);
                    break;
                }
                Err(e) => {
                    self.store.notice(&format!("a conversation was not kept on disk: {e}"));
                    drafts.remove(&id);
                }
            }
        }
        drop(drafts);
        let mut queue = self.lock();
        queue.ended = true;
        queue.busy = false;
        queue.jobs.clear();
        queue.bytes = 0;
        self.changed.notify_all();
    }

    fn next(&self) -> Option<(u64, Job)> {
        let mut queue = self.lock();
        queue.busy = false;
        self.changed.notify_all();
        let waits = |queue: &mut Queue| queue.jobs.is_empty() && queue.stop_at.is_none();
        let mut queue = self.changed.wait_while(queue, waits).unwrap_or_else(PoisonError::into_inner);
        if queue.stop_at.is_some_and(|at| Instant::now() >= at) {
            return None;
        }
        let (id, job) = queue.jobs.pop_front()?;
        if let Job::Record(_, bytes) = &job {
            queue.bytes -= bytes.len();
        }
        queue.busy = true;
        self.changed.notify_all();
        Some((id, job))
    }

    fn run(&self, drafts: &mut HashMap<u64, Draft>, id: u64, job: Job) -> Result<()> {
        match job {
            Job::Begin(header) => {
                if let Ok(draft) = self.store.draft(*header)? {
                    drafts.insert(id, draft);
                }
            }
            Job::Record(place, bytes) => {
                if let Some(draft) = drafts.get_mut(&id) {
                    draft.record(place, &bytes)?;
                }
            }
            Job::Finish => {
                if let Some(draft) = drafts.remove(&id) {
                    self.store.complete(draft)?;
                }
            }
            Job::Abandon => {
                drafts.remove(&id);
            }
        }
        Ok(())
    }
}
