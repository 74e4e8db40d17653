//! One timeline: the ids computed so far and the cache pages that hold them; and runs over several timelines at once.

use std::ops::ControlFlow;

use super::{Engine, EngineError};
use crate::backend::{Env, Phase, Seq, Token};
use crate::plan::PAGE_TOKENS;

/// Whose logits a sync returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Nobody's: the tokens are only cached.
    None,
    /// The last token's: (1, vocab).
    Last,
    /// Every computed token's, batch by batch.
    All,
    /// None: only which is the last token's largest, for `Engine::best`.
    Best,
}

/// New tokens of one timeline in a run.
pub struct Span<'a> {
    pub session: &'a mut Session,
    pub ids: &'a [u32],
    pub wanted: Wanted,
    pub phase: Phase,
}

/// A timeline of tokens. Its pages go back to the engine by `Session::clear`.
#[derive(Debug, Default)]
pub struct Session {
    ids: Vec<u32>,
    pages: Vec<u32>,
    /// The engine's, when what the pages hold was computed.
    epoch: u32,
}

impl Session {
    /// An empty timeline.
    pub fn new() -> Session {
        Session::default()
    }

    /// The tokens that are computed and cached.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Forgets everything and gives the pages back.
    pub fn clear(&mut self, engine: &mut Engine) {
        self.truncate(engine, 0);
    }

    /// Keeps the first `tokens` tokens.
    pub fn truncate(&mut self, engine: &mut Engine, tokens: usize) {
        self.ids.truncate(tokens);
        let kept = self.ids.len().div_ceil(PAGE_TOKENS);
        engine.pages.give_back(self.pages.drain(kept..));
    }

    /// Makes the timeline equal `ids`, computing only what differs, and returns the last token's logits (vocab).
    pub fn sync<'e>(&mut self, engine: &'e mut Engine, ids: &[u32]) -> Result<&'e mut [f32], EngineError> {
        self.sync_with(engine, ids, |_, _| ControlFlow::Continue(()))
    }

    /// As `sync`; after each batch `progress` hears (tokens computed, tokens to compute) and may stop the work, which
    /// then can be resumed: what was computed stays.
    pub fn sync_with<'e>(
        &mut self,
        engine: &'e mut Engine,
        ids: &[u32],
        mut progress: impl FnMut(usize, usize) -> ControlFlow<()>,
    ) -> Result<&'e mut [f32], EngineError> {
        let common = self.ids.iter().zip(ids).take_while(|(a, b)| a == b).count();
        // The last token is always run, for its logits.
        self.truncate(engine, common.min(ids.len().saturating_sub(1)));
        let new = &ids[self.ids.len()..];
        let total = new.len();
        self.extend(engine, new, Wanted::Last, |done, _| progress(done, total))?;
        let vocab = engine.plan.vocab;
        Ok(&mut engine.logits[..vocab])
    }

    /// Appends tokens that are read. After each batch `see` gets the number of new tokens done so far and the logits wanted of
    /// that batch (rows, vocab).
    pub fn extend(
        &mut self,
        engine: &mut Engine,
        new: &[u32],
        wanted: Wanted,
        see: impl FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        self.append(engine, new, wanted, Phase::Prompt, see)
    }

    /// Appends a token that was chosen, and returns its logits where they are wanted: (vocab).
    pub fn decode<'e>(
        &mut self,
        engine: &'e mut Engine,
        id: u32,
        wanted: Wanted,
    ) -> Result<&'e mut [f32], EngineError> {
        self.append(engine, &[id], wanted, Phase::Decode, |_, _| ControlFlow::Continue(()))?;
        Ok(&mut engine.logits)
    }

    fn append(
        &mut self,
        engine: &mut Engine,
        new: &[u32],
        wanted: Wanted,
        phase: Phase,
        mut see: impl FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        if new.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let tokens = self.ids.len() + new.len();
        if tokens > engine.context {
            return Err(EngineError::ContextFull { tokens, context: engine.context });
        }
        engine.before(phase == Phase::Decode, self.ids.len())?;
        // All at once: caches that grow then do so a single time.
        self.reserve(engine, new.len())?;
        let mut done = 0;
        let size = engine.batch;
        for ids in new.chunks(size) {
            let last = done + ids.len() == new.len();
            let wanted = match wanted {
                Wanted::Last | Wanted::Best if !last => Wanted::None,
                Wanted::None | Wanted::Last | Wanted::All | Wanted::Best => wanted,
            };
            let logits = run(engine, &mut [Span { session: self, ids, wanted, phase }])?;
            done += ids.len();
            if see(done, logits).is_break() && !last {
                self.give_back(engine);
                return Err(EngineError::Interrupted);
            }
        }
        Ok(())
    }

    /// Gives back pages that were taken for tokens which then were not computed.
    fn give_back(&mut self, engine: &mut Engine) {
        self.truncate(engine, self.ids.len());
    }

    /// Takes the pages that `new` more tokens need.
    fn reserve(&mut self, engine: &mut Engine, new: usize) -> Result<(), EngineError> {
        let tokens = self.ids.len() + new;
        if new == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if tokens > engine.context {
            return Err(EngineError::ContextFull { tokens, context: engine.context });
        }
        // A run that failed may have left pages that hold nothing yet.
        let missing = tokens.div_ceil(PAGE_TOKENS).saturating_sub(self.pages.len());
        self.pages.extend(engine.take_pages(missing)?);
        self.refresh(engine)
    }

    /// Computes again what an executor that is gone had cached.
    fn refresh(&mut self, engine: &mut Engine) -> Result<(), EngineError> {
        if self.epoch == engine.epoch {
            return Ok(());
        }
        for (i, batch) in self.ids.chunks(engine.batch).enumerate() {
            let start = i * engine.batch;
            let run: Vec<Token> =
                batch.iter().enumerate().map(|(i, &id)| Token { id, seq: 0, pos: (start + i) as u32 }).collect();
            let tables: &[&[u32]] = &[&self.pages];
            engine.compute(&Env { tokens: &run, rows: &[], seqs: &[Seq::new(tables, Phase::Prompt)] })?;
        }
        self.epoch = engine.epoch;
        Ok(())
    }
}

/// Appends tokens to several timelines in one run, which reads the weights once for all of them; returns the logits
/// wanted, span after span: (rows, vocab).
///
/// All spans together hold at most `Engine::batch` tokens. If the run fails, no timeline has changed.
pub fn advance<'e>(engine: &'e mut Engine, spans: &mut [Span]) -> Result<&'e mut [f32], EngineError> {
    let generated = spans.iter().all(|span| span.phase == Phase::Decode);
    engine.before(generated, spans.iter().map(|span| span.session.ids.len()).max().unwrap_or(0))?;
    run(engine, spans)
}

/// The same, whatever was run before.
fn run<'e>(engine: &'e mut Engine, spans: &mut [Span]) -> Result<&'e mut [f32], EngineError> {
    let total: usize = spans.iter().map(|span| span.ids.len()).sum();
    if total > engine.batch {
        return Err(EngineError::BatchFull { tokens: total, batch: engine.batch });
    }
    for span in &mut *spans {
        span.session.reserve(engine, span.ids.len())?;
    }
    let mut tokens = Vec::with_capacity(total);
    let mut rows = vec![];
    for (seq, span) in spans.iter().enumerate() {
        let first = tokens.len() as u32;
        let start = span.session.ids.len();
        let place = |(i, &id)| Token { id, seq: seq as u32, pos: (start + i) as u32 };
        tokens.extend(span.ids.iter().enumerate().map(place));
        let end = tokens.len() as u32;
        match span.wanted {
            Wanted::None => {}
            Wanted::Last | Wanted::Best => rows.push(end - 1),
            Wanted::All => rows.extend(first..end),
        }
    }
    // Whose logits one span wants are those of all.
    let best = spans.iter().any(|span| span.wanted == Wanted::Best)
        && spans.iter().all(|span| matches!(span.wanted, Wanted::Best | Wanted::None));
    let compute = |engine: &mut Engine, spans: &[Span]| {
        let tables: Vec<[&[u32]; 1]> = spans.iter().map(|span| [&span.session.pages[..]]).collect();
        let seqs: Vec<Seq> = tables.iter().zip(spans).map(|(tables, span)| Seq::new(tables, span.phase)).collect();
        let env = Env { tokens: &tokens, rows: &rows, seqs: &seqs };
        if best { engine.forward_best(&env) } else { engine.forward(&env) }
    };
    if let Err(e) = compute(engine, spans) {
        // A lost GPU took the caches with it: without it, all is computed anew.
        if let Err(e) = engine.leave_gpus(e) {
            spans.iter_mut().for_each(|span| span.session.give_back(engine));
            return Err(e);
        }
        for span in &mut *spans {
            span.session.refresh(engine)?;
        }
        compute(engine, spans)?;
    }
    spans.iter_mut().for_each(|span| span.session.ids.extend_from_slice(span.ids));
    Ok(&mut engine.logits)
}
