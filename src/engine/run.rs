//! One run over several sequences: places taken, pages copied that others hold too, tokens computed, results as rows.
//!
//! Weights are read once for all of them. A run that fails, or that is stopped, leaves every sequence as it was: keys behind
//! a sequence's end are nobody's, and a state is never overwritten.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::past::{Past, Want};
use super::pool::Held;
use super::session::Session;
use super::{Engine, EngineError, finite, split};
use crate::backend::{Backend, BackendError, Env, Phase, Seq, StateStep, Token, largest};
use crate::plan::PAGE_TOKENS;

/// Whose results a span wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nobody's: the tokens are only cached.
    None,
    /// The last token's logits: (1, vocab).
    Last,
    /// Every token's logits.
    All,
    /// Only which of the last token's logits is the largest.
    Best,
}

/// New tokens of one sequence in a run.
pub struct Span<'a> {
    pub session: &'a mut Session,
    pub ids: &'a [u32],
    pub wanted: Wanted,
    pub phase: Phase,
    /// Keep the position behind them to go on from, for models that can not go on from any.
    pub mark: bool,
}

/// The last run's results.
#[derive(Debug, Default)]
pub(super) struct Results {
    logits: Vec<f32>,         // (r, vocab); empty when only the largest were wanted
    best: Vec<Option<u32>>,   // (r), then
    spans: Vec<Range<usize>>, // rows of each span
}

/// What a run computed, by span.
pub struct Rows<'e> {
    results: &'e mut Results,
    vocab: usize,
}

impl<'e> Rows<'e> {
    /// A span's logits: (rows, vocab); empty when it wanted only the largest, and the others did too.
    pub fn logits(&mut self, span: usize) -> &mut [f32] {
        let rows = self.results.spans[span].clone();
        let vocab = self.vocab;
        self.results.logits.get_mut(rows.start * vocab..rows.end * vocab).unwrap_or_default()
    }

    /// The id of the largest logit of a span's last row, the lowest of equals; `None` when a logit is not finite.
    pub fn best(&self, span: usize) -> Option<u32> {
        let last = self.results.spans[span].clone().next_back()?;
        match self.results.logits.get(last * self.vocab..(last + 1) * self.vocab) {
            Some(row) => largest(row),
            None => self.results.best.get(last).copied().flatten(),
        }
    }

    /// All logits, span after span: (rows, vocab).
    pub fn all(self) -> &'e mut [f32] {
        &mut self.results.logits
    }
}

/// Appends tokens to several sequences in one run.
///
/// All spans together hold at most `Engine::batch` tokens. If the run fails, no sequence has changed.
pub fn advance<'e>(engine: &'e mut Engine, spans: &mut [Span]) -> Result<Rows<'e>, EngineError> {
    advance_unless(engine, spans, None)
}

/// The same, unless `stop` is set: it is looked at between the layers of a long run, which then fails as stopped.
pub fn advance_unless<'e>(
    engine: &'e mut Engine,
    spans: &mut [Span],
    stop: Option<&AtomicBool>,
) -> Result<Rows<'e>, EngineError> {
    let tokens: usize = spans.iter().map(|span| span.ids.len()).sum();
    if tokens > engine.batch {
        return Err(EngineError::BatchFull { tokens, batch: engine.batch });
    }
    for span in &*spans {
        let tokens = span.session.ids.len() + span.ids.len();
        if span.ids.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if tokens > engine.context {
            return Err(EngineError::ContextFull { tokens, context: engine.context });
        }
    }
    let generated = spans.iter().all(|span| span.phase == Phase::Decode);
    engine.before(generated && spans.len() == 1)?;
    let began = Instant::now();
    let result = run(engine, spans, stop).or_else(|e| {
        // A lost GPU took the caches with it: without it, all is computed anew.
        engine.leave_gpus(e)?;
        run(engine, spans, stop)
    });
    if let Err(e) = result {
        spans.iter_mut().for_each(|span| span.session.release());
        return Err(e);
    }
    if spans.iter().all(|span| span.phase == Phase::Prompt) {
        let depth = |span: &Span| (span.session.ids.len() as f64 - span.ids.len() as f64 / 2.0) * span.ids.len() as f64;
        let depth = spans.iter().map(depth).sum::<f64>() / tokens as f64;
        engine.memory.learn(tokens, depth, began.elapsed().as_secs_f64());
    }
    Ok(Rows { vocab: engine.plan.vocab, results: &mut engine.results })
}

fn run(engine: &mut Engine, spans: &mut [Span], stop: Option<&AtomicBool>) -> Result<(), EngineError> {
    for span in &mut *spans {
        engine.refresh(span.session)?;
        engine.reserve(span.session, span.ids.len())?;
    }
    let mut states: Vec<Option<Held>> = vec![];
    for _ in &*spans {
        states.push(if engine.memory.shape().states { Some(engine.take(Want::State)?) } else { None });
    }
    let mut tokens = vec![];
    let mut rows = vec![];
    engine.results.spans.clear();
    for (seq, span) in spans.iter().enumerate() {
        let first = tokens.len() as u32;
        let start = span.session.ids.len();
        let place = |(i, &id)| Token { id, seq: seq as u32, pos: (start + i) as u32 };
        tokens.extend(span.ids.iter().enumerate().map(place));
        let end = tokens.len() as u32;
        let before = rows.len();
        match span.wanted {
            Wanted::None => {}
            Wanted::Last | Wanted::Best => rows.push(end - 1),
            Wanted::All => rows.extend(first..end),
        }
        engine.results.spans.push(before..rows.len());
    }
    // Logits stay where they are when nobody wants more than the largest.
    let best = spans.iter().any(|span| span.wanted == Wanted::Best)
        && spans.iter().all(|span| matches!(span.wanted, Wanted::Best | Wanted::None));
    let tables: Vec<Vec<&[u32]>> =
        spans.iter().map(|span| span.session.tables.iter().map(|table| &table.numbers[..]).collect()).collect();
    let seqs: Vec<Seq> = (spans.iter().zip(&tables).zip(&states))
        .map(|((span, tables), state)| Seq {
            tables,
            state: state.as_ref().map(|to| StateStep { from: span.session.state(), to: to.place() }),
            phase: span.phase,
        })
        .collect();
    let env = Env { tokens: &tokens, rows: &rows, seqs: &seqs, stop };
    engine.compute(&env, best)?;
    for (span, state) in spans.iter_mut().zip(states) {
        span.session.ids.extend_from_slice(span.ids);
        if engine.memory.shape().is_marked() && (state.is_some() || span.mark) {
            span.session.mark(state, span.mark);
        }
        span.session.trim();
    }
    Ok(())
}

impl Engine {
    /// Runs the whole plan for these tokens; `best`: only the largest logit of each row is wanted.
    pub(super) fn compute(&mut self, env: &Env, best: bool) -> Result<(), EngineError> {
        self.fit_cache()?;
        let backend = split(&mut self.backend)?;
        let vocab = self.plan.vocab;
        self.results.logits.clear();
        self.results.best.clear();
        backend.begin(env)?;
        if best {
            self.results.best.resize(env.rows.len(), None);
            backend.submit_best(self.plan.sections.forward(), env)?;
            // While a GPU still computes.
            backend.end(env)?;
            backend.read_best(env, (self.plan.logits, vocab), &mut self.results.best)?;
            if self.results.best.contains(&None) && self.has_broken_logits(env)? {
                return Err(self.first_broken_step(env));
            }
        } else {
            backend.run(self.plan.sections.forward(), env)?;
            backend.end(env)?;
            self.results.logits.resize(env.rows.len() * vocab, 0.0);
            if !env.rows.is_empty() {
                backend.read(self.plan.logits, &mut self.results.logits)?;
            }
            if finite::is_broken(&self.results.logits) {
                return Err(self.first_broken_step(env));
            }
        }
        self.record(env)
    }

    /// What the last run computed, by span.
    pub fn rows(&mut self) -> Rows<'_> {
        Rows { vocab: self.plan.vocab, results: &mut self.results }
    }

    /// Whether all ids are of this model's vocabulary.
    pub fn check_ids(&self, ids: &[u32]) -> Result<(), EngineError> {
        let vocab = self.plan.vocab;
        match ids.iter().find(|&&id| id as usize >= vocab) {
            Some(&id) => Err(BackendError::UnknownToken { id, vocab }.into()),
            None => Ok(()),
        }
    }

    /// Whether sequences can go on from marked positions only.
    pub fn is_marked(&self) -> bool {
        self.memory.shape().is_marked()
    }

    /// Pages that a sequence of these ids and one more would take from what others could get.
    pub fn needed_pages(&self, ids: &[u32]) -> usize {
        self.memory.needed_pages(ids)
    }

    /// Pages that a new sequence could get.
    pub fn free_pages(&self) -> usize {
        self.memory.free_pages()
    }

    /// The logits of the last row that was run, also when only the largest was wanted: (vocab).
    pub fn last_logits(&mut self) -> Result<&mut [f32], EngineError> {
        let (vocab, rows) = (self.plan.vocab, self.results.best.len());
        let logits = &mut self.results.logits;
        if logits.is_empty() {
            logits.resize(rows.max(1) * vocab, 0.0);
            split(&mut self.backend)?.read(self.plan.logits, logits)?;
        }
        let first = logits.len() - vocab;
        Ok(&mut logits[first..])
    }

    /// Takes a place, which costs the past something when none is free.
    pub(super) fn take(&mut self, want: Want) -> Result<Held, EngineError> {
        let room = match want {
            Want::Page(_) => self.backend.as_ref().and_then(|split| split.cache_room()),
            Want::State => None,
        };
        let Engine { memory, backend, disk, .. } = self;
        let (costs, shape) = (memory.costs(), Arc::clone(memory.shape()));
        let lost = |past: &Past, victim| {
            if let (Some(disk), Some(backend)) = (&disk, backend.as_mut()) {
                disk.lose(backend, past, victim, &costs, &shape.windows);
            }
        };
        memory.take(want, room, lost).ok_or(EngineError::NoPages)
    }

    /// Takes the pages that `new` more tokens need, and copies the one that they begin in if others hold it too.
    pub(super) fn reserve(&mut self, session: &mut Session, new: usize) -> Result<(), EngineError> {
        let result = self.try_reserve(session, new);
        if result.is_err() {
            session.release();
        }
        result
    }

    fn try_reserve(&mut self, session: &mut Session, new: usize) -> Result<(), EngineError> {
        session.adopt(self.memory.shape());
        let held = session.ids.len();
        let mut copies = vec![];
        for group in 0..session.tables.len() {
            // Pages of a window go back as they fall behind it: only one run's are there at once.
            let windowed = self.memory.shape().windows[group].is_some();
            let new = if windowed { new.min(self.batch) } else { new };
            let at = held / PAGE_TOKENS;
            let shared = |page: &Option<Held>| page.as_ref().is_some_and(Held::is_shared);
            if !held.is_multiple_of(PAGE_TOKENS) && session.tables[group].pages.get(at).is_some_and(shared) {
                copies.push((group, at, self.take(Want::Page(group))?));
            }
            while session.tables[group].pages.len() < (held + new).div_ceil(PAGE_TOKENS) {
                let page = self.take(Want::Page(group))?;
                session.tables[group].push(page);
            }
        }
        if copies.is_empty() {
            return Ok(());
        }
        self.fit_cache()?;
        for (group, at, copy) in copies {
            let from = session.tables[group].numbers[at];
            split(&mut self.backend)?.copy_page(group, from, copy.place())?;
            session.tables[group].set(at, Some(copy));
        }
        Ok(())
    }

    /// Caches that trade memory with experts get room for what running sequences hold, and for what is kept as far as they
    /// have it anyway.
    pub(super) fn fit_cache(&mut self) -> Result<(), EngineError> {
        let backend = split(&mut self.backend)?;
        let Some(room) = backend.cache_room() else { return Ok(()) };
        let needed = |pool: &super::pool::Pool| pool.in_use().max(pool.held().min(room));
        let pages = self.memory.pools().iter().map(needed).max().unwrap_or(0);
        Ok(backend.fit_cache(pages)?)
    }

    /// Computes again what executors that are gone had cached.
    pub(super) fn refresh(&mut self, session: &mut Session) -> Result<(), EngineError> {
        if session.is_of(&self.memory) {
            return Ok(());
        }
        let ids = std::mem::take(&mut session.ids);
        session.clear();
        // Traces and statistics had these tokens already.
        let (recorder, heat) = (self.recorder.take(), self.heat.take());
        let result = ids.chunks(self.batch).try_for_each(|ids| {
            run(self, &mut [Span { session, ids, wanted: Wanted::None, phase: Phase::Prompt, mark: false }], None)
        });
        (self.recorder, self.heat) = (recorder, heat);
        result
    }
}

impl EngineError {
    /// Whether a run was broken off because its `stop` was set.
    pub fn is_stopped(&self) -> bool {
        matches!(self, EngineError::Backend(BackendError::Stopped))
    }
}
