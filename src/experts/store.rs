//! The RAM tier: slots of one expert each, filled by explicit reads, kept by score.
//!
//! Experts beyond the budget are never touched through the mapping. When a layer's picks are known the executor says
//! which experts it wants (`want`): those in a slot are ready, the others take the slots whose experts are worth least
//! and are read on threads of their own while the rest is computed. A slot is pinned from `want` to `release`, so that
//! nothing that is computed, or still being read, is ever overwritten. Slots of one layout (the same bytes for each of
//! the three matrices) form one pool over all layers. Ghosts keep their scores.
//!
//! Nothing is read before a layer's picks are known. A guess that is wrong delays what is needed by the reads it has running:
//! read while the disk is idle for a part w of an expert's read, it pays when it is right more often than 1 - w. Replayed over
//! two real traces (Qwen3-30B and Gemma-4-26B, 128 decoded tokens each; a tenth, a fifth, a third and half of the experts
//! resident), the likeliest absent expert of the next layer is right for 44 to 48%, 28%, 10% and 1% by counts of what this
//! layer's picks were followed by, and for 11 to 13%, 6 to 7%, 3% and under 1% by score; what the last token used is right for
//! 16 to 26% at a tenth and a fifth, and resident already from a third on. Those are too few where most is resident. The next
//! layer's router, applied to the residual stream before this layer's experts, says more: on one mixture made of a dense model
//! (16 experts, 2 used, a third resident; 40 tokens) 74% of the absent ones among its picks were right, and 83% of what had to
//! be read was among them. What that gains was not measured.
//!
//! A read that fails for good is kept as the run's error; whoever waits then gets nothing, and the run ends with it.

mod lend;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::disk::{ALIGN, Aligned, Disk, DiskError, Extent};
use super::heat::Heat;
use super::score::{HALF_LIFE, Scores};
pub use lend::{Loan, PastSlots};

/// Gate, up and down matrix.
pub const PARTS: usize = 3;

/// Bytes of one read: several of them keep a disk busy, and the first are there soon.
const PIECE: usize = 4 << 20;
const _: () = assert!(PIECE.is_multiple_of(ALIGN));

/// Tokens at the end of a prompt's batch that count for the scores.
pub const SCORED_TOKENS: usize = 64;

/// Where the experts of one layer lie in the files.
#[derive(Clone, Debug)]
pub struct LayerExperts {
    pub experts: usize,
    /// Picked by one token.
    pub used: usize,
    /// Of the first expert, and how many bytes behind it the next one's lies.
    pub parts: [Extent; PARTS],
    pub strides: [u64; PARTS],
}

impl LayerExperts {
    fn extent(&self, expert: usize, part: usize) -> Extent {
        let first = self.parts[part];
        Extent { offset: first.offset + expert as u64 * self.strides[part], ..first }
    }

    /// Bytes of one expert.
    pub fn expert_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes as u64).sum()
    }
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Counters {
    /// Experts wanted, and how many of them had to be read.
    pub wanted: u64,
    pub read: u64,
    pub bytes_read: u64,
    /// Time that the first worker waited for reads.
    pub waited_seconds: f64,
    /// Bytes of all slots, and how many experts they hold at most.
    pub slot_bytes: u64,
    pub slots: u64,
    /// Experts of the model.
    pub experts: u64,
}

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("{bytes} bytes for experts were refused by the system; use a smaller --ram")]
    OutOfMemory { bytes: u64 },
    #[error("can not lock {bytes} bytes in memory: {cause}; raise the limit ('ulimit -l') or leave out --mlock")]
    Lock { bytes: u64, cause: std::io::Error },
}

/// The slots and what fills them.
pub struct Store {
    inner: Arc<Inner>,
    readers: Vec<JoinHandle<()>>,
}

struct Inner {
    disk: Disk,
    layers: Vec<LayerExperts>,
    pools: Vec<Pool>,
    pool_of: Vec<usize>,     // by layer
    first_entry: Vec<usize>, // by layer: where its experts start in `slot_of` and the scores
    /// By entry: slot + 1, or 0. Written under the lock, between barriers of the executor.
    slot_of: Vec<AtomicU32>,
    state: Mutex<State>,
    queue: Mutex<Queue>,
    work: Condvar,
    idle: Condvar,
    failed: AtomicBool,
    waited_ns: AtomicU64,
}

/// Slots of one layout.
struct Pool {
    memory: Aligned, // (slots, stride)
    stride: usize,
    part_at: [usize; PARTS],
    slots: usize,
    /// By (slot, part): pieces still to be read; `EMPTY` before anything is.
    pending: Vec<AtomicU32>,
}

const EMPTY: u32 = u32::MAX;

/// Worth of an expert that lies in a faster tier: less than any score, more than an empty slot.
const AWAY: f64 = -1.0;

struct State {
    scores: Scores,
    holds: Vec<Vec<Option<usize>>>, // by pool and slot: the entry
    pinned: Vec<Vec<bool>>,         // by pool and slot
    lent: Vec<Vec<u32>>,            // by pool and slot: copies on their way out of it
    away: Vec<bool>,                // by entry: lies in a faster tier
    candidates: Vec<(f64, usize)>,  // scratch of `want`
    wanted: u64,
    read: u64,
}

struct Queue {
    jobs: VecDeque<Job>,
    running: usize,
    stop: bool,
    failure: Option<DiskError>,
}

#[derive(Clone, Copy)]
struct Job {
    pool: usize,
    slot: usize,
    part: usize,
    extent: Extent,
    at: usize, // in the pool's memory
}

impl Store {
    /// Slots for `budget_bytes` of experts, but never fewer than one token's picks of a layer need.
    pub fn new(
        disk: Disk,
        layers: Vec<LayerExperts>,
        budget_bytes: u64,
        threads: usize,
        lock: bool,
    ) -> Result<Store, StoreError> {
        let mut layouts: Vec<[usize; PARTS]> = vec![];
        let mut pool_of = vec![];
        for layer in &layers {
            let layout = layer.parts.map(|part| part.bytes);
            let known = layouts.iter().position(|other| *other == layout);
            pool_of.push(known.unwrap_or_else(|| {
                layouts.push(layout);
                layouts.len() - 1
            }));
        }
        let total: u64 = layers.iter().map(|l| l.experts as u64 * l.expert_bytes()).sum();
        let mut pools = vec![];
        for (i, layout) in layouts.iter().enumerate() {
            let of_pool = || layers.iter().zip(&pool_of).filter(|(_, pool)| **pool == i).map(|(layer, _)| layer);
            let experts: usize = of_pool().map(|layer| layer.experts).sum();
            let least = of_pool().map(|layer| layer.used).max().unwrap_or(1);
            let bytes = layout.iter().sum::<usize>().max(1) as u64;
            let share = (budget_bytes as f64 * (experts as u64 * bytes) as f64 / total.max(1) as f64) as u64;
            let slots = ((share / bytes) as usize).clamp(least, experts.max(least));
            pools.push(Pool::new(layout, slots, lock)?);
        }
        let first_entry = layers
            .iter()
            .scan(0, |next, layer| {
                let first = *next;
                *next += layer.experts;
                Some(first)
            })
            .collect();
        let entries = layers.iter().map(|layer| layer.experts).sum();
        let state = State {
            scores: Scores::new(entries, HALF_LIFE),
            holds: pools.iter().map(|pool| vec![None; pool.slots]).collect(),
            pinned: pools.iter().map(|pool| vec![false; pool.slots]).collect(),
            lent: pools.iter().map(|pool| vec![0; pool.slots]).collect(),
            away: vec![false; entries],
            candidates: vec![],
            wanted: 0,
            read: 0,
        };
        let inner = Arc::new(Inner {
            disk,
            layers,
            pools,
            pool_of,
            first_entry,
            slot_of: (0..entries).map(|_| AtomicU32::new(0)).collect(),
            state: Mutex::new(state),
            queue: Mutex::new(Queue { jobs: VecDeque::new(), running: 0, stop: false, failure: None }),
            work: Condvar::new(),
            idle: Condvar::new(),
            failed: AtomicBool::new(false),
            waited_ns: AtomicU64::new(0),
        });
        let mut readers = vec![];
        for i in 0..threads.max(1) {
            let inner = Arc::clone(&inner);
            let reader = std::thread::Builder::new().name(format!("rynd-read-{i}")).spawn(move || inner.read_jobs());
            match reader {
                Ok(reader) => readers.push(reader),
                // One reader is enough; none is not.
                Err(_) if !readers.is_empty() => break,
                Err(cause) => {
                    let file = std::path::PathBuf::from("a thread for reads");
                    return Err(DiskError::Open { file, cause: Arc::new(cause) }.into());
                }
            }
        }
        Ok(Store { inner, readers })
    }

    /// How many experts of this layer can be wanted at once.
    pub fn room(&self, layer: usize) -> usize {
        self.inner.pools[self.inner.pool_of[layer]].slots
    }

    /// Pins these experts of a layer and starts to read those that are in no slot. Returns how many have a slot, from
    /// the front; all of them when `wait` is set, which takes until enough running reads are done. At most `room(layer)`
    /// experts can be pinned at a time.
    pub fn want(&self, layer: usize, ids: impl Iterator<Item = usize> + Clone, wait: bool) -> usize {
        let wanted = ids.clone().count();
        loop {
            let granted = self.inner.want(layer, ids.clone());
            if granted == wanted || !wait || self.inner.failed.load(Ordering::Acquire) {
                return granted;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Starts the scores where an earlier run's picks would have brought them.
    pub fn seed(&self, heat: &Heat) {
        let mut state = lock(&self.inner.state);
        if heat.picks.iter().map(Vec::len).sum::<usize>() == self.inner.slot_of.len() {
            heat.seed(&mut state.scores, HALF_LIFE);
        }
    }

    /// What an expert is worth: its score, in picks made now.
    pub fn worth(&self, layer: usize, expert: usize) -> f64 {
        lock(&self.inner.state).scores.crf(self.inner.first_entry[layer] + expert)
    }

    /// The router picked these experts of a layer, for one token.
    pub fn picked(&self, layer: usize, ids: impl Iterator<Item = usize>) {
        let mut state = lock(&self.inner.state);
        let first = self.inner.first_entry[layer];
        ids.for_each(|id| state.scores.touch(first + id));
    }

    /// Lets go of experts that `want` pinned.
    pub fn release(&self, layer: usize, ids: impl Iterator<Item = usize>) {
        let mut state = lock(&self.inner.state);
        let pool = self.inner.pool_of[layer];
        for id in ids {
            if let Some(slot) = self.inner.slot(layer, id) {
                state.pinned[pool][slot] = false;
            }
        }
    }

    /// Whether all of an expert has been read.
    pub fn is_ready(&self, layer: usize, expert: usize) -> bool {
        let pool = &self.inner.pools[self.inner.pool_of[layer]];
        self.inner.slot(layer, expert).is_some_and(|slot| pool.is_ready(slot))
    }

    /// One matrix of a wanted expert: waits until it is read. `None` when a read failed; the run's end tells why.
    ///
    /// # Safety
    /// The expert is pinned by `want` and stays so for as long as the bytes are used.
    pub unsafe fn part(&self, layer: usize, expert: usize, part: usize, timed: bool) -> Option<&[u8]> {
        let inner = &*self.inner;
        let pool = &inner.pools[inner.pool_of[layer]];
        let slot = inner.slot(layer, expert)?;
        let pending = &pool.parts(slot)[part];
        if pending.load(Ordering::Acquire) != 0 {
            let start = Instant::now();
            let mut turns = 0_u32;
            while pending.load(Ordering::Acquire) != 0 {
                if inner.failed.load(Ordering::Acquire) {
                    return None;
                }
                turns += 1;
                // Reads take milliseconds: a waiting worker gives its core to those who fetch.
                if turns < 100 { std::hint::spin_loop() } else { std::thread::sleep(Duration::from_micros(50)) }
            }
            if timed {
                inner.waited_ns.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
            }
        }
        // SAFETY: nothing is pending, so no reader writes here, and the pin keeps it so.
        Some(unsafe { pool.part(slot, part, inner.layers[layer].extent(expert, part)) })
    }

    /// Ends a run of `tokens` tokens: the clock of the scores moves on. A failed read is the run's error; what was being
    /// read then is forgotten, and the next run starts afresh.
    pub fn end_run(&self, tokens: usize) -> Result<(), DiskError> {
        let inner = &*self.inner;
        for _ in 0..tokens.min(SCORED_TOKENS) {
            lock(&inner.state).scores.end_token(1.0);
        }
        if !inner.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut queue = lock(&inner.queue);
        queue.jobs.clear();
        while queue.running > 0 {
            queue = inner.idle.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let failure = queue.failure.take();
        drop(queue);
        inner.forget_unread();
        inner.failed.store(false, Ordering::Release);
        failure.map_or(Ok(()), Err)
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        let inner = &*self.inner;
        let state = lock(&inner.state);
        Counters {
            wanted: state.wanted,
            read: state.read,
            bytes_read: inner.disk.bytes_read(),
            waited_seconds: inner.waited_ns.load(Ordering::Relaxed) as f64 / 1e9,
            slot_bytes: inner.pools.iter().map(|pool| pool.memory.len() as u64).sum(),
            slots: inner.pools.iter().map(|pool| pool.slots as u64).sum(),
            experts: inner.slot_of.len() as u64,
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let mut queue = lock(&self.inner.queue);
        queue.stop = true;
        queue.jobs.clear();
        drop(queue);
        self.inner.work.notify_all();
        for reader in self.readers.drain(..) {
            // A reader that panicked has been told of by its panic.
            let _ = reader.join();
        }
    }
}

impl Pool {
    fn new(layout: &[usize; PARTS], slots: usize, lock: bool) -> Result<Pool, StoreError> {
        let mut stride = 0;
        let part_at = layout.map(|bytes| {
            let at = stride;
            // Wherever the part begins in the file, its aligned blocks fit.
            stride += (bytes + ALIGN - 1).next_multiple_of(ALIGN);
            at
        });
        let bytes = stride.saturating_mul(slots);
        let memory = Aligned::zeroed(bytes).ok_or(StoreError::OutOfMemory { bytes: bytes as u64 })?;
        if lock {
            memory.lock().map_err(|cause| StoreError::Lock { bytes: bytes as u64, cause })?;
        }
        let pending = (0..slots * PARTS).map(|_| AtomicU32::new(EMPTY)).collect();
        Ok(Pool { memory, stride, part_at, slots, pending })
    }

    fn parts(&self, slot: usize) -> &[AtomicU32] {
        &self.pending[slot * PARTS..(slot + 1) * PARTS]
    }

    /// A matrix that lies in a slot.
    ///
    /// # Safety
    /// It has been read, and the slot is not filled anew while the bytes are used.
    unsafe fn part(&self, slot: usize, part: usize, extent: Extent) -> &[u8] {
        let at = slot * self.stride + self.part_at[part] + extent.lead();
        // SAFETY: the caller rules out readers of the disk, who alone write here.
        unsafe { self.memory.bytes(at..at + extent.bytes) }
    }

    fn is_ready(&self, slot: usize) -> bool {
        self.parts(slot).iter().all(|pending| pending.load(Ordering::Acquire) == 0)
    }

    /// Whether a read into the slot is on its way.
    fn is_loading(&self, slot: usize) -> bool {
        self.parts(slot).iter().any(|pending| !matches!(pending.load(Ordering::Acquire), 0 | EMPTY))
    }
}

impl Inner {
    fn slot(&self, layer: usize, expert: usize) -> Option<usize> {
        let slot = self.slot_of[self.first_entry[layer] + expert].load(Ordering::Acquire);
        (slot as usize).checked_sub(1)
    }

    fn want(&self, layer: usize, ids: impl Iterator<Item = usize> + Clone) -> usize {
        let pool_at = self.pool_of[layer];
        let pool = &self.pools[pool_at];
        let first = self.first_entry[layer];
        let mut guard = lock(&self.state);
        let State { scores, holds, pinned, lent, away, candidates, wanted, read } = &mut *guard;
        let (holds, pinned, lent) = (&mut holds[pool_at], &mut pinned[pool_at], &lent[pool_at]);
        let mut missing = 0;
        for id in ids.clone() {
            match self.slot(layer, id) {
                // Wanted again, by a wave that an earlier one has read ahead for, counts once.
                Some(slot) => *wanted += u64::from(!std::mem::replace(&mut pinned[slot], true)),
                None => missing += 1,
            }
        }
        candidates.clear();
        if missing > 0 {
            let free = (0..pool.slots).filter(|&slot| !pinned[slot] && lent[slot] == 0 && !pool.is_loading(slot));
            let worth = |slot: usize| match holds[slot] {
                None => f64::NEG_INFINITY,
                Some(entry) if away[entry] => AWAY,
                Some(entry) => scores.crf(entry),
            };
            candidates.extend(free.map(|slot| (worth(slot), slot)));
            let by_worth = |a: &(f64, usize), b: &(f64, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
            if missing < candidates.len() {
                candidates.select_nth_unstable_by(missing, by_worth);
                candidates.truncate(missing);
            }
            candidates.sort_unstable_by(by_worth);
        }
        let mut victims = candidates.iter();
        let mut jobs = vec![];
        let mut granted = 0;
        for id in ids {
            granted += 1;
            if self.slot(layer, id).is_some() {
                continue;
            }
            let Some(&(_, slot)) = victims.next() else {
                granted -= 1;
                break;
            };
            if let Some(old) = holds[slot].replace(first + id) {
                self.slot_of[old].store(0, Ordering::Release);
            }
            pinned[slot] = true;
            self.start(pool_at, slot, layer, id, &mut jobs);
            self.slot_of[first + id].store(slot as u32 + 1, Ordering::Release);
            (*wanted, *read) = (*wanted + 1, *read + 1);
        }
        drop(guard);
        if !jobs.is_empty() {
            // Gate and up of all experts come before the downs, which are needed last.
            jobs.sort_by_key(|job| job.part == PARTS - 1);
            lock(&self.queue).jobs.extend(jobs);
            self.work.notify_all();
        }
        granted
    }

    /// The reads that fill a slot with an expert.
    fn start(&self, pool_at: usize, slot: usize, layer: usize, expert: usize, jobs: &mut Vec<Job>) {
        let pool = &self.pools[pool_at];
        for part in 0..PARTS {
            let whole = self.layers[layer].extent(expert, part);
            let base = slot * pool.stride + pool.part_at[part];
            let end = whole.offset + whole.bytes as u64;
            let block = whole.offset - whole.lead() as u64;
            let (mut from, mut pieces) = (whole.offset, 0);
            while from < end {
                let to = (block + (pieces as u64 + 1) * PIECE as u64).min(end);
                let extent = Extent { offset: from, bytes: (to - from) as usize, ..whole };
                jobs.push(Job { pool: pool_at, slot, part, extent, at: base + pieces as usize * PIECE });
                (from, pieces) = (to, pieces + 1);
            }
            pool.parts(slot)[part].store(pieces, Ordering::Release);
        }
    }

    /// A reader's life.
    fn read_jobs(&self) {
        let mut queue = lock(&self.queue);
        loop {
            if queue.stop {
                return;
            }
            let Some(job) = queue.jobs.pop_front() else {
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            queue.running += 1;
            drop(queue);
            let pool = &self.pools[job.pool];
            let range = job.at..job.at + job.extent.buffer_bytes();
            // SAFETY: the slot is pinned and pending, so only the readers of its own pieces write, each its own range.
            let result = self.disk.read(job.extent, unsafe { pool.memory.bytes_mut(range) });
            if result.is_ok() {
                pool.parts(job.slot)[job.part].fetch_sub(1, Ordering::AcqRel);
            }
            queue = lock(&self.queue);
            queue.running -= 1;
            if let Err(error) = result {
                queue.failure.get_or_insert(error);
                self.failed.store(true, Ordering::Release);
            }
            if queue.running == 0 {
                self.idle.notify_all();
            }
        }
    }

    /// Empties the slots that are not wholly read. Nothing is being read, and nobody computes.
    fn forget_unread(&self) {
        let mut state = lock(&self.state);
        for (pool_at, pool) in self.pools.iter().enumerate() {
            for slot in 0..pool.slots {
                state.pinned[pool_at][slot] = false;
                if pool.is_ready(slot) {
                    continue;
                }
                if let Some(entry) = state.holds[pool_at][slot].take() {
                    self.slot_of[entry].store(0, Ordering::Release);
                }
                pool.parts(slot).iter().for_each(|pending| pending.store(EMPTY, Ordering::Release));
            }
        }
    }
}

/// A poisoned lock means that a thread panicked, which is told elsewhere; the counters behind it are whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
