//! A thread that brings experts to the slots of one GPU, so that no token waits for it.
//!
//! It owns the staging buffers. The queue of a device runs what was submitted in order: a slot's new content is copied
//! after the last submission that read the old one, and the expert counts as present only when its copy is done.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::backend::BackendError;
use crate::experts::Promotion;
use crate::gguf::Advice;
use crate::gpu::{ExpertUploader, Ticket};
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
    /// Starts the thread. Every `fail_every`th job fails, for tests.
    pub(super) fn start(
        uploader: ExpertUploader,
        weights: Weights,
        fail_every: Option<usize>,
    ) -> Result<Uploads, BackendError> {
        let (jobs, taken) = channel();
        let (answer, outcomes) = channel();
        let worker = Worker { uploader, weights, running: vec![], answer, fail_every, count: 0 };
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
        loop {
            let expert = job.promotion.expert;
            let bytes = job.tensors.map(|id| self.weights.expert(id, expert));
            match self.uploader.start(job.pool, job.promotion.slot, bytes) {
                Ok(Some(ticket)) => return self.running.push((ticket, job)),
                // All staging memory is on its way.
                Ok(None) => {
                    std::thread::sleep(LOOK);
                    self.look();
                }
                Err(e) => return self.tell(job.promotion, Err(e.to_string())),
            }
        }
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
            if result.is_ok() {
                // The tiers are exclusive: what is in VRAM need not stay in the page cache.
                for id in job.tensors {
                    let weight = self.weights.plan().weight(id);
                    let (tensor, size) = (weight.tensor, weight.expert_bytes());
                    let range = job.promotion.expert * size..(job.promotion.expert + 1) * size;
                    let gguf = self.weights.gguf();
                    gguf.advise_range(&gguf.tensors()[tensor], range, Advice::DontNeed);
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
