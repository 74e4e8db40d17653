//! A thread that brings experts to the slots of one GPU, so that no token waits for it.
//!
//! It owns the staging buffers. The queue of a device runs what was submitted in order: a slot's new content is copied
//! after the last submission that read the old one, and the expert counts as present only when its copy is done.
//!
//! With a RAM tier the bytes come out of its slots, or off the disk by a read of this thread; the mapping is not touched. So
//! a file that became shorter is an upload that failed, and what can not be read stays where it was.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::backend::BackendError;
use crate::experts::Promotion;
use crate::experts::store::PastSlots;
use crate::experts::tier::Tier;
use crate::gguf::Advice;
use crate::gpu::{ExpertUploader, GpuError, Ticket};
use crate::plan::WeightId;
use crate::weights::Weights;

/// Between two looks at what is on its way.
const LOOK: Duration = Duration::from_micros(100);

/// What to copy where: the pool is the GPU's.
pub(super) struct Job {
    pub promotion: Promotion,
    pub pool: usize,
    pub tensors: [WeightId; 3],
}

/// What became of it.
pub(super) type Outcome = (Promotion, Result<(), String>);

/// The thread's other end.
pub(super) struct Uploads {
    jobs: Option<Sender<Job>>,
    outcomes: Receiver<Outcome>,
    thread: Option<JoinHandle<()>>,
    /// Jobs that are not answered yet.
    pub open: usize,
}

impl Uploads {
    /// Starts the thread. Experts come from the tier, if there is one. Every `fail_every`th job fails, for tests.
    pub(super) fn start(
        uploader: ExpertUploader,
        weights: Weights,
        tier: Option<Arc<Tier>>,
        fail_every: Option<usize>,
    ) -> Result<Uploads, BackendError> {
        let (jobs, taken) = channel();
        let (answer, outcomes) = channel();
        let worker = Worker {
            uploader,
            weights,
            tier,
            past: PastSlots::default(),
            running: vec![],
            answer,
            fail_every,
            count: 0,
        };
        let thread = std::thread::Builder::new()
            .name("rynd-uploads".to_owned())
            .spawn(move || worker.run(&taken))
            .map_err(|e| BackendError::Device(format!("can not start a thread for uploads: {e}")))?;
        Ok(Uploads { jobs: Some(jobs), outcomes, thread: Some(thread), open: 0 })
    }

    /// Hands over a job; what can not be handed over has failed.
    pub(super) fn send(&mut self, job: Job) -> Result<(), Job> {
        let Some(jobs) = &self.jobs else { return Err(job) };
        jobs.send(job).map_err(|e| e.0)?;
        self.open += 1;
        Ok(())
    }

    /// The next outcome that is there.
    pub(super) fn next(&mut self) -> Option<Outcome> {
        let outcome = self.outcomes.try_recv().ok()?;
        self.open -= 1;
        Some(outcome)
    }

    /// The next outcome, waited for; `None` when nothing is open. For loading and for tests.
    pub(super) fn wait(&mut self) -> Option<Outcome> {
        if self.open == 0 {
            return None;
        }
        match self.outcomes.recv() {
            Ok(outcome) => {
                self.open -= 1;
                Some(outcome)
            }
            // The thread is gone: nothing will be answered any more.
            Err(_) => {
                self.open = 0;
                None
            }
        }
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It ends when the jobs do; a panic there has nothing to tell us here.
            let _ = thread.join();
        }
    }
}

struct Worker {
    uploader: ExpertUploader,
    weights: Weights,
    tier: Option<Arc<Tier>>,
    past: PastSlots,
    running: Vec<(Ticket, Job)>,
    answer: Sender<Outcome>,
    fail_every: Option<usize>,
    count: usize,
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let job = match self.running.is_empty() {
                true => jobs.recv().map_err(|_| TryRecvError::Disconnected),
                false => jobs.try_recv(),
            };
            match job {
                Ok(job) => self.begin(job),
                Err(TryRecvError::Empty) => std::thread::sleep(LOOK),
                Err(TryRecvError::Disconnected) => return,
            }
            self.look();
        }
    }

    fn begin(&mut self, job: Job) {
        self.count += 1;
        if self.fail_every.is_some_and(|n| self.count.is_multiple_of(n)) {
            return self.tell(job.promotion, Err("a fault was injected".to_owned()));
        }
        let mut was_read = false;
        loop {
            match self.copy(&job, &mut was_read) {
                Ok(Some(ticket)) => return self.running.push((ticket, job)),
                // All staging memory is on its way.
                Ok(None) => {
                    std::thread::sleep(LOOK);
                    self.look();
                }
                Err(why) => return self.tell(job.promotion, Err(why)),
            }
        }
    }

    /// Starts to copy a job's bytes from where they are; `None` when there is no staging memory. `was_read`: they were read
    /// from disk by an earlier attempt.
    fn copy(&mut self, job: &Job, was_read: &mut bool) -> Result<Option<Ticket>, String> {
        let (slot, expert) = (job.promotion.slot, job.promotion.expert);
        let told = |e: GpuError| e.to_string();
        let place = |tier: &Arc<Tier>| Some((Arc::clone(tier), tier.place(job.tensors[0])?.0));
        let Some((tier, layer)) = self.tier.as_ref().and_then(place) else {
            let bytes = job.tensors.map(|id| self.weights.expert(id, expert));
            return self.uploader.start(job.pool, slot, bytes).map_err(told);
        };
        if !*was_read {
            // The loan ends with the call: a slot is never kept while a GPU is waited for.
            if let Some(loan) = tier.store.lend(layer, expert) {
                return self.uploader.start(job.pool, slot, loan.parts()).map_err(told);
            }
            tier.store.read_past(layer, expert, &mut self.past).map_err(|e| e.to_string())?;
            *was_read = true;
        }
        self.uploader.start(job.pool, slot, self.past.parts()).map_err(told)
    }

    /// Tells of what is done.
    fn look(&mut self) {
        let mut at = 0;
        while at < self.running.len() {
            let result = match self.uploader.is_done(&self.running[at].0) {
                Ok(false) => {
                    at += 1;
                    continue;
                }
                Ok(true) => Ok(()),
                Err(e) => Err(e.to_string()),
            };
            let (_, job) = self.running.swap_remove(at);
            if result.is_ok() && self.tier.is_none() {
                // The tiers are exclusive: what is in VRAM need not stay in the page cache.
                for id in job.tensors {
                    let weight = self.weights.plan().weight(id);
                    let range = weight.expert_range(job.promotion.expert);
                    let gguf = self.weights.gguf();
                    gguf.advise_range(&gguf.tensors()[weight.tensor], range, Advice::DontNeed);
                }
            }
            self.tell(job.promotion, result);
        }
    }

    fn tell(&self, promotion: Promotion, result: Result<(), String>) {
        // Nobody listens any more when the engine is closed.
        let _ = self.answer.send((promotion, result));
    }
}
