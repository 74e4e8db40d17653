//! One timeline: the ids computed so far and the cache pages that hold them.

use std::ops::ControlFlow;

use super::{Engine, EngineError};
use crate::backend::{Env, Token};
use crate::plan::PAGE_TOKENS;

/// Whose logits a sync returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The last token's: (1, vocab).
    Last,
    /// Every computed token's, batch by batch.
    All,
    /// None: only which is the last token's largest, for `Engine::best`.
    Best,
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
        engine.free_pages.extend(self.pages.drain(kept..));
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

    /// Appends tokens. After each batch `see` gets the number of new tokens done so far and the logits wanted of that
    /// batch (rows, vocab).
    pub fn extend(
        &mut self,
        engine: &mut Engine,
        new: &[u32],
        wanted: Wanted,
        mut see: impl FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        if new.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        let tokens = self.ids.len() + new.len();
        if tokens > engine.context {
            return Err(EngineError::ContextFull { tokens, context: engine.context });
        }
        self.refresh(engine)?;
        let mut done = 0;
        for batch in new.chunks(engine.batch) {
            let end = self.ids.len() + batch.len();
            let missing = end.div_ceil(PAGE_TOKENS) - self.pages.len();
            self.pages.extend(engine.take_pages(missing)?);
            let start = self.ids.len();
            let run: Vec<Token> =
                batch.iter().enumerate().map(|(i, &id)| Token { id, seq: 0, pos: (start + i) as u32 }).collect();
            let last = done + batch.len() == new.len();
            let rows: Vec<u32> = match wanted {
                Wanted::All => (0..batch.len() as u32).collect(),
                Wanted::Last | Wanted::Best if last => vec![batch.len() as u32 - 1],
                Wanted::Last | Wanted::Best => vec![],
            };
            let forward = |engine: &mut Engine, pages: &[u32]| {
                let env = Env { tokens: &run, rows: &rows, pages: &[pages] };
                if wanted == Wanted::Best { engine.forward_best(&env) } else { engine.forward(&env).map(|_| ()) }
            };
            if let Err(e) = forward(engine, &self.pages) {
                // A lost GPU took the cache with it: without it, all is computed anew.
                engine.leave_gpus(e)?;
                self.refresh(engine)?;
                forward(engine, &self.pages)?;
            }
            let logits = &engine.logits[..];
            done += batch.len();
            self.ids.extend_from_slice(batch);
            if see(done, logits).is_break() && !last {
                return Err(EngineError::Interrupted);
            }
        }
        Ok(())
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
            engine.forward(&Env { tokens: &run, rows: &[], pages: &[&self.pages] })?;
        }
        self.epoch = engine.epoch;
        Ok(())
    }
}
