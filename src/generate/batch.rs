//! Many requests at once: one run of the model computes the next token of each, and prompts of those that just came.
//!
//! Decoding one token reads every weight once, so decoding one token of each of sixteen requests costs little more: this
//! is what a server and an evaluation want. Requests join and leave between two steps. A step gives every answer that is
//! under way its token first; what the run still holds goes to prompts, in the order in which they came. The texts are
//! those of one request alone, up to how the kernels for one and for many tokens round.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::stream::Stream;
use super::{Event, Finish, GenerateError, Limits, Summary};
use crate::backend::Phase;
use crate::engine::{self, Engine, EngineError, Session, Span, Wanted};
use crate::sampler::{Sampler, SamplerError};
use crate::tokenizer::Tokenizer;

/// One request.
pub struct Job {
    /// What it holds of the prompt's start is not computed again.
    pub session: Session,
    pub prompt: Vec<u32>,
    pub sampler: Sampler,
    pub limits: Limits,
}

/// A request that is over.
pub struct Done {
    pub id: usize,
    /// Its pages are the caller's again: to clear, or to go on from.
    pub session: Session,
    /// An error is this request's own, such as a bias that forbids every token.
    pub result: Result<Summary, GenerateError>,
}

/// Requests that run together.
#[derive(Default)]
pub struct Batch {
    running: Vec<Running>,
    next_id: usize,
}

struct Running {
    id: usize,
    job: Job,
    stream: Stream,
    /// The token that was chosen last and is not computed yet; none while the prompt is.
    chosen: Option<u32>,
    summary: Summary,
    started: Instant,
}

impl Running {
    /// Tokens that wait to be computed.
    fn waiting(&self) -> usize {
        match self.chosen {
            Some(_) => 1,
            None => self.job.prompt.len() - self.job.session.ids().len(),
        }
    }
}

impl Batch {
    /// No requests yet.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Requests that are not over.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Takes a request in; the next step starts it. Its id is one that no other request of this batch had.
    ///
    /// The engine must have been loaded for as many sessions, and at most `Engine::batch` requests run at once.
    pub fn add(&mut self, engine: &mut Engine, mut job: Job) -> Result<usize, GenerateError> {
        let (tokens, context) = (job.prompt.len(), engine.context());
        if self.running.len() == engine.batch() {
            return Err(GenerateError::Busy { most: engine.batch() });
        }
        if tokens == 0 {
            return Err(EngineError::EmptyPrompt.into());
        }
        if tokens > context {
            return Err(EngineError::ContextFull { tokens, context }.into());
        }
        let held = job.session.ids().iter().zip(&job.prompt).take_while(|(a, b)| a == b).count();
        let held = held.min(tokens - 1); // The last token is always run, for its logits.
        job.session.truncate(engine, held);
        let summary = Summary {
            finish: Finish::Length,
            prompt_tokens: tokens,
            cached_tokens: held,
            generated_tokens: 0,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
        };
        let stream = Stream::new(&job.limits, context - tokens);
        let id = self.next_id;
        self.next_id += 1;
        self.running.push(Running { id, job, stream, chosen: None, summary, started: Instant::now() });
        Ok(id)
    }

    /// Runs the model once and returns the requests that are over by it.
    ///
    /// `on_event` hears each request's events with its id and may break that request off; the others go on. After an
    /// error all requests are as they were before the step.
    pub fn step(
        &mut self,
        engine: &mut Engine,
        tokenizer: &Tokenizer,
        mut on_event: impl FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<Vec<Done>, GenerateError> {
        let shares = self.shares(engine.batch());
        let mut spans = vec![];
        for (running, &share) in self.running.iter_mut().zip(&shares).filter(|(_, share)| **share > 0) {
            let Running { job: Job { session, prompt, .. }, chosen, .. } = running;
            let start = session.ids().len();
            let phase = if chosen.is_some() { Phase::Decode } else { Phase::Prompt };
            let (ids, wanted) = match chosen {
                Some(id) => (std::slice::from_ref(id), Wanted::Last),
                None if start + share == prompt.len() => (&prompt[start..], Wanted::Last),
                None => (&prompt[start..start + share], Wanted::None),
            };
            spans.push(Span { session, ids, wanted, phase });
        }
        if spans.is_empty() {
            return Ok(vec![]);
        }
        let rows = spans.iter().filter(|span| span.wanted == Wanted::Last).count();
        let logits = engine::advance(engine, &mut spans)?;
        let mut rows = logits.chunks_exact_mut((logits.len() / rows.max(1)).max(1));

        let mut finished = vec![];
        for (at, running) in self.running.iter_mut().enumerate().filter(|(at, _)| shares[*at] > 0) {
            let mut on_event = |event: Event| on_event(running.id, event);
            let Job { session, prompt, sampler, .. } = &mut running.job;
            let prefilling = running.chosen.is_none();
            if prefilling {
                let total = prompt.len() - running.summary.cached_tokens;
                let done = session.ids().len() - running.summary.cached_tokens;
                let flow = on_event(Event::Prefill { done, total });
                let complete = done == total;
                if complete {
                    prompt.iter().for_each(|&id| sampler.accept(id));
                    running.summary.prefill = running.started.elapsed();
                }
                if flow.is_break() {
                    // The row of a complete prompt is there, though nobody wants it.
                    let _ = if complete { rows.next() } else { None };
                    finished.push((at, Ok(Finish::Interrupted)));
                    continue;
                }
                if !complete {
                    continue;
                }
            }
            let Some(row) = rows.next() else { continue };
            match sampler.sample(row) {
                Err(error) => finished.push((at, Err(error))),
                Ok(id) => match running.stream.push(tokenizer, sampler, id, &mut on_event) {
                    Some(finish) => finished.push((at, Ok(finish))),
                    None => running.chosen = Some(id),
                },
            }
        }
        let mut done: Vec<Done> = finished.into_iter().rev().map(|(at, finish)| self.take(at, finish)).collect();
        done.reverse();
        Ok(done)
    }

    /// Breaks everything off; the sessions hold what was computed.
    pub fn stop(&mut self) -> Vec<Done> {
        let all = (0..self.running.len()).rev();
        all.map(|at| self.take(at, Ok(Finish::Interrupted))).collect()
    }

    /// How many tokens each request gets in a run of `room`.
    fn shares(&self, mut room: usize) -> Vec<usize> {
        let mut shares = vec![0; self.running.len()];
        for decoding in [true, false] {
            for (share, running) in shares.iter_mut().zip(&self.running) {
                if running.chosen.is_some() == decoding {
                    *share = running.waiting().min(room);
                    room -= *share;
                }
            }
        }
        shares
    }

    fn take(&mut self, at: usize, finish: Result<Finish, SamplerError>) -> Done {
        let Running { id, job, stream, mut summary, started, .. } = self.running.remove(at);
        summary.generated_tokens = stream.tokens();
        match summary.prefill {
            Duration::ZERO => summary.prefill = started.elapsed(),
            prefill => summary.decode = started.elapsed().saturating_sub(prefill),
        }
        let result = finish.map(|finish| Summary { finish, ..summary }).map_err(GenerateError::from);
        Done { id, session: job.session, result }
    }
}
