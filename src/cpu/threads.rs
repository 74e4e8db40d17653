//! A team of worker threads that walks the step list together.
//!
//! One rayon broadcast a run; between steps a barrier, and work handed out by an atomic counter. A fork and join per
//! operation would cost more than the operations of a small model, which has hundreds a token. A worker waits at a
//! barrier by spinning, for as long as a chunk of work may take, and then by sleeping: on a machine that others use too,
//! the one that is waited for may itself wait for a core, and gets the sleeper's.
//!
//! The phase contract: between two barriers, a range of a `Shared` buffer is written by at most one worker, and read by
//! others only when nobody writes it. Every `unsafe` access in this module's siblings leans on that sentence; it is why
//! `unsafe` is allowed in the executor at all.

use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::BackendError;

/// How long a waiting worker spins before it sleeps. Waking takes about as long, and a scheduler's slice, for which a
/// preempted worker is away, a hundred times that.
const SPIN: Duration = Duration::from_micros(50);
/// Spins between two looks at the clock.
const SPINS: usize = 32;

/// The threads of an executor.
pub struct Team {
    pool: rayon::ThreadPool,
}

impl Team {
    /// A team of `threads` workers.
    pub fn new(threads: usize) -> Result<Team, BackendError> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("rynd-cpu-{i}"))
            .build()
            .map(|pool| Team { pool })
            .map_err(|e| BackendError::Device(format!("can not start {threads} threads: {e}; use a smaller -t")))
    }

    /// Number of workers.
    pub fn size(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` on every worker at once and waits for all.
    pub fn run(&self, work: impl Fn(&Worker) + Sync) {
        let shared = Meeting::new(self.size());
        self.pool.broadcast(|context| {
            let worker = Worker { index: context.index(), meeting: &shared, phase: Cell::new(0) };
            let _guard = PoisonOnPanic(&shared);
            work(&worker);
        });
    }
}

/// Where the workers of one run meet.
struct Meeting {
    size: usize,
    arrived: AtomicUsize,
    generation: AtomicUsize,
    poisoned: AtomicBool,
    /// Workers that sleep, or are about to.
    sleepers: AtomicUsize,
    asleep: Mutex<()>,
    woken: Condvar,
    /// Work counters of three phases in turn: the next is cleared while the current is used.
    next: [AtomicUsize; 3],
}

impl Meeting {
    fn new(size: usize) -> Meeting {
        Meeting {
            size,
            arrived: AtomicUsize::new(0),
            generation: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            asleep: Mutex::new(()),
            woken: Condvar::new(),
            next: [const { AtomicUsize::new(0) }; 3],
        }
    }

    /// Whether all have met since `generation`, or one of them died.
    fn is_over(&self, generation: usize) -> bool {
        // Sequentially consistent, as are the stores before `wake` and the count of sleepers: either the one who stores
        // sees the sleeper, or the sleeper sees what was stored.
        self.generation.load(Ordering::SeqCst) != generation || self.poisoned.load(Ordering::SeqCst)
    }

    /// Waits until `is_over`.
    fn wait(&self, generation: usize) {
        let mut since = None;
        loop {
            for _ in 0..SPINS {
                if self.is_over(generation) {
                    return;
                }
                std::hint::spin_loop();
            }
            if since.get_or_insert_with(Instant::now).elapsed() >= SPIN {
                break;
            }
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut asleep = self.asleep.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_over(generation) {
            asleep = self.woken.wait(asleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Wakes those who sleep, after the store that they sleep for.
    fn wake(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // Taken and given back: whoever counted itself is now either asleep or has seen the store.
            drop(self.asleep.lock().unwrap_or_else(PoisonError::into_inner));
            self.woken.notify_all();
        }
    }
}

/// Wakes the others when a worker dies, so that they do not wait at a barrier forever.
struct PoisonOnPanic<'a>(&'a Meeting);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poisoned.store(true, Ordering::SeqCst);
            self.0.wake();
        }
    }
}

/// One worker's view of a run.
pub struct Worker<'a> {
    pub index: usize,
    meeting: &'a Meeting,
    phase: Cell<usize>,
}

impl Worker<'_> {
    /// Number of workers in the team.
    pub fn team(&self) -> usize {
        self.meeting.size
    }

    /// Waits until every worker is here; what they wrote before is visible after.
    pub fn barrier(&self) {
        let meeting = self.meeting;
        if meeting.size == 1 {
            return;
        }
        let generation = meeting.generation.load(Ordering::Acquire);
        if meeting.arrived.fetch_add(1, Ordering::AcqRel) + 1 == meeting.size {
            meeting.arrived.store(0, Ordering::Relaxed);
            meeting.generation.store(generation.wrapping_add(1), Ordering::SeqCst);
            meeting.wake();
            return;
        }
        meeting.wait(generation);
        if meeting.generation.load(Ordering::Acquire) == generation {
            // Only reachable after another worker's panic, which the broadcast reports.
            std::panic::resume_unwind(Box::new("another worker of the team died"));
        }
    }

    /// Hands out `0..total` in runs of `chunk` to whoever is free; ends with a barrier.
    pub fn chunks(&self, total: usize, chunk: usize, mut work: impl FnMut(Range<usize>)) {
        let phase = self.phase.get();
        self.phase.set(phase + 1);
        self.meeting.next[(phase + 1) % 3].store(0, Ordering::Relaxed);
        let next = &self.meeting.next[phase % 3];
        loop {
            let from = next.fetch_add(chunk, Ordering::Relaxed);
            if from >= total {
                break;
            }
            work(from..(from + chunk).min(total));
        }
        self.barrier();
    }

    /// This worker's even share of `0..total`; no barrier.
    pub fn share(&self, total: usize) -> Range<usize> {
        let (n, i) = (self.meeting.size, self.index);
        total * i / n..total * (i + 1) / n
    }
}

/// A buffer that the workers of a team write in disjoint ranges between barriers.
pub struct Shared<T> {
    values: Box<[UnsafeCell<T>]>,
}

// SAFETY: all access goes through `get` and `get_mut`, whose callers keep the phase contract.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

impl<T: Copy + Default> Shared<T> {
    /// `len` zeroed values; `what` is named when memory runs out.
    pub fn zeroed(len: usize, what: &str) -> Result<Shared<T>, BackendError> {
        let bytes = len.saturating_mul(size_of::<T>());
        if len == 0 {
            return Ok(Shared { values: Box::new([]) });
        }
        let refused = || BackendError::OutOfMemory { what: what.to_owned(), bytes };
        let layout = std::alloc::Layout::array::<UnsafeCell<T>>(len).map_err(|_| refused())?;
        // Zeroed pages come from the system lazily: a long context costs memory only as it fills.
        // SAFETY: the layout is not empty; all-zero bytes are a valid T (f32, f16, i8, u32 are the only uses), and the
        // box takes over exactly the allocation that was made.
        unsafe {
            let values = std::alloc::alloc_zeroed(layout).cast::<UnsafeCell<T>>();
            if values.is_null() {
                return Err(refused());
            }
            Ok(Shared { values: Box::from_raw(std::ptr::slice_from_raw_parts_mut(values, len)) })
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Values to read.
    ///
    /// # Safety
    /// The phase contract: nobody writes the range until the next barrier.
    pub unsafe fn get(&self, range: Range<usize>) -> &[T] {
        let cells = &self.values[range];
        // SAFETY: UnsafeCell<T> has T's layout; the caller rules out writers.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    /// Values to write.
    ///
    /// # Safety
    /// The phase contract: nobody else reads or writes the range until the next barrier.
    #[expect(
        clippy::mut_from_ref,
        reason = "this is the one place where the phase contract replaces the borrow checker"
    )]
    pub unsafe fn get_mut(&self, range: Range<usize>) -> &mut [T] {
        let cells = &self.values[range];
        // SAFETY: UnsafeCell<T> has T's layout and allows mutation; the caller rules out every other access.
        unsafe { std::slice::from_raw_parts_mut(cells.as_ptr().cast_mut().cast(), cells.len()) }
    }

    /// The whole buffer, when no team runs.
    pub fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: `&mut self` rules out every other access.
        unsafe { self.get_mut(0..self.len()) }
    }

    /// The first value's address, for kernels that write a strided part.
    pub fn as_ptr(&self) -> *mut T {
        self.values.as_ptr().cast_mut().cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_out_all_work_once_over_many_phases() {
        for threads in [1, 2, 3] {
            let team = Team::new(threads).unwrap();
            let seen = Shared::<u32>::zeroed(1000, "test").unwrap();
            team.run(|worker| {
                for _ in 0..500 {
                    worker.chunks(1000, 7, |range| {
                        // SAFETY: chunks are disjoint and end with a barrier.
                        unsafe { seen.get_mut(range) }.iter_mut().for_each(|n| *n += 1);
                    });
                }
            });
            let mut seen = seen;
            assert!(seen.as_mut().iter().all(|&n| n == 500));
        }
    }

    #[test]
    fn workers_that_sleep_at_a_barrier_are_woken_and_see_what_was_written() {
        let team = Team::new(3).unwrap();
        let values = Shared::<u32>::zeroed(3, "test").unwrap();
        team.run(|worker| {
            for round in 1..=20 {
                // Each is late in turn, by far more than the others spin.
                if round as usize % 3 == worker.index {
                    std::thread::sleep(20 * SPIN);
                }
                // SAFETY: each worker has a value of its own, and a barrier follows.
                let own = unsafe { values.get_mut(worker.index..worker.index + 1) };
                own[0] = round;
                worker.barrier();
                // SAFETY: written before the barrier, and not again before the next.
                assert_eq!(unsafe { values.get(0..3) }, [round; 3]);
                worker.barrier();
            }
        });
    }

    #[test]
    fn a_panic_in_one_worker_does_not_hang_the_others() {
        for late in [Duration::ZERO, 20 * SPIN] {
            let team = Team::new(2).unwrap();
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                team.run(|worker| {
                    if worker.index == 0 {
                        std::thread::sleep(late);
                    }
                    assert!(worker.index != 0, "on purpose");
                    worker.barrier();
                });
            }));
            assert!(result.is_err());
        }
    }
}
