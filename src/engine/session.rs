//! What one sequence remembers: its ids, the pages that hold their keys and values, and recurrent states at some positions.
//!
//! A session is a value. `fork` costs counters, not memory: both hold the same pages until one writes, and the run that
//! writes copies the one page in question. Dropped, a session gives back what nobody else holds. It goes on from any
//! position where all that a token sees is still there: any at all for a model that keeps every key, else those of its
//! marks, and what lies within the windows.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::memory::Memory;
use super::pool::Held;
use super::run::{self, Span, Wanted};
use super::{Engine, EngineError};
use crate::backend::{NO_PAGE, Phase};
use crate::plan::{PAGE_TOKENS, Plan};

/// Unmarked states that stay behind the last: what a rejected draft needs.
const ROLLBACK: usize = 4;

/// What a model's sequences are made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub windows: Vec<Option<usize>>, // by page group
    pub states: bool,
}

impl Shape {
    pub(super) fn of(plan: &Plan) -> Shape {
        let windows = plan.groups.iter().map(|group| group.window.map(|window| window as usize)).collect();
        Shape { windows, states: !plan.states.is_empty() }
    }

    /// Whether a sequence can go on from some positions only.
    pub(super) fn is_marked(&self) -> bool {
        self.states || self.windows.iter().any(Option::is_some)
    }
}

/// The pages of one group.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub pages: Vec<Option<Held>>,
    pub numbers: Vec<u32>, // of `pages`, as a run wants them
}

impl Table {
    fn share(&self, pages: usize, cached: bool) -> Table {
        let pages: Vec<_> =
            self.pages.iter().take(pages).map(|page| page.as_ref().map(|page| page.share(cached))).collect();
        let numbers = self.numbers[..pages.len()].to_vec();
        Table { pages, numbers }
    }

    pub(super) fn truncate(&mut self, pages: usize) {
        self.pages.truncate(pages);
        self.numbers.truncate(pages);
    }

    pub(super) fn push(&mut self, page: Held) {
        self.numbers.push(page.place());
        self.pages.push(Some(page));
    }

    /// A page that no token from here on sees.
    pub(super) fn push_missing(&mut self) {
        self.numbers.push(NO_PAGE);
        self.pages.push(None);
    }

    pub(super) fn set(&mut self, at: usize, page: Option<Held>) {
        self.numbers[at] = page.as_ref().map_or(NO_PAGE, Held::place);
        self.pages[at] = page;
    }
}

/// A position to go on from: its state, where the model has one, and a reason to keep the pages within the windows.
#[derive(Debug)]
pub(super) struct Mark {
    pub position: usize,
    pub state: Option<Held>,
    /// Asked for; else it only trails the end.
    pub kept: bool,
}

/// A sequence's memory.
#[derive(Debug, Default)]
pub struct Session {
    pub(super) ids: Vec<u32>,
    pub(super) shape: Option<Arc<Shape>>, // of the engine that first computed something
    pub(super) tables: Vec<Table>,        // by page group
    pub(super) marks: Vec<Mark>,          // rising
}

impl Session {
    /// Nothing yet.
    pub fn new() -> Session {
        Session::default()
    }

    /// The tokens that are computed.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Another sequence that remembers the same, without a copy.
    pub fn fork(&self) -> Session {
        self.share(self.ids.len(), false)
    }

    /// The same up to `tokens`, which must be a position to go on from; `cached`: held by the cache of past sequences.
    pub(super) fn share(&self, tokens: usize, cached: bool) -> Session {
        let pages = tokens.div_ceil(PAGE_TOKENS);
        let mark = |mark: &Mark| Mark { state: mark.state.as_ref().map(|s| s.share(cached)), ..*mark };
        Session {
            ids: self.ids[..tokens].to_vec(),
            shape: self.shape.clone(),
            tables: self.tables.iter().map(|table| table.share(pages, cached)).collect(),
            marks: self.marks.iter().filter(|mark| mark.position <= tokens).map(mark).collect(),
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Session::default();
    }

    /// Keeps the first `tokens` tokens, or as many before as it can go on from; returns how many.
    pub fn truncate(&mut self, tokens: usize) -> usize {
        let kept = self.resumable(tokens);
        self.cut(kept);
        kept
    }

    /// Gives up what lies behind `tokens`.
    pub(super) fn cut(&mut self, tokens: usize) {
        self.ids.truncate(tokens);
        let pages = tokens.div_ceil(PAGE_TOKENS);
        self.tables.iter_mut().for_each(|table| table.truncate(pages));
        self.marks.retain(|mark| mark.position <= tokens);
    }

    /// The last position up to `tokens` that it can go on from.
    pub fn resumable(&self, tokens: usize) -> usize {
        let mut at = tokens.min(self.ids.len());
        let Some(shape) = &self.shape else { return 0 };
        loop {
            if shape.states {
                let before = |mark: &&Mark| mark.state.is_some() && mark.position <= at;
                at = self.marks.iter().rev().find(before).map_or(0, |mark| mark.position);
            }
            let missing = self.tables.iter().zip(&shape.windows).filter_map(|(table, window)| {
                let first = window.map_or(0, |window| (at + 1).saturating_sub(window)) / PAGE_TOKENS;
                let seen = first..at.div_ceil(PAGE_TOKENS);
                seen.rev().find(|&page| table.pages.get(page).is_none_or(Option::is_none))
            });
            match missing.max() {
                // A token at the page's start sees nothing of it.
                Some(page) => at = (page * PAGE_TOKENS).min(at - 1),
                None => return at,
            }
        }
    }

    /// Marks its end as a position to go on from.
    pub(super) fn mark(&mut self, state: Option<Held>, kept: bool) {
        let position = self.ids.len();
        self.marks.retain(|mark| mark.position < position);
        self.marks.push(Mark { position, state, kept });
    }

    /// Gives back states that nobody asked to keep and pages that no window reaches any more.
    pub(super) fn trim(&mut self) {
        let Some(shape) = self.shape.clone().filter(|shape| shape.is_marked()) else { return };
        let loose = self.marks.iter().filter(|mark| !mark.kept).count();
        let mut surplus = loose.saturating_sub(ROLLBACK);
        self.marks.retain(|mark| {
            let goes = !mark.kept && surplus > 0;
            surplus -= usize::from(goes);
            !goes
        });
        self.trim_windows(&shape);
    }

    /// Gives back pages that neither the end nor a mark sees.
    pub(super) fn trim_windows(&mut self, shape: &Shape) {
        for (table, window) in self.tables.iter_mut().zip(&shape.windows) {
            let Some(window) = *window else { continue };
            let mut seen = vec![false; table.pages.len()];
            for end in self.marks.iter().map(|mark| mark.position).chain([self.ids.len()]) {
                let first = (end + 1).saturating_sub(window) / PAGE_TOKENS;
                let last = end.div_ceil(PAGE_TOKENS).min(seen.len());
                seen[first.min(last)..last].fill(true);
            }
            for (at, seen) in seen.into_iter().enumerate() {
                if !seen && table.pages[at].is_some() {
                    table.set(at, None);
                }
            }
        }
    }

    /// Takes on the shape of an engine's sequences, before it holds anything.
    pub(super) fn adopt(&mut self, shape: &Arc<Shape>) {
        if self.shape.is_none() {
            self.shape = Some(Arc::clone(shape));
            self.tables.resize_with(shape.windows.len(), Table::default);
        }
    }

    /// The state at its end; `None` at the start, and where the model has none.
    pub(super) fn state(&self) -> Option<u32> {
        let end = self.marks.last().filter(|mark| mark.position == self.ids.len())?;
        end.state.as_ref().map(Held::place)
    }

    /// Whether what it holds is of these caches; what others hold is gone.
    pub(super) fn is_of(&self, memory: &Memory) -> bool {
        let mut pages = self.tables.iter().zip(memory.pools());
        pages.all(|(table, pool)| table.pages.iter().flatten().next_back().is_none_or(|page| page.is_of(pool)))
            && self.marks.iter().all(|mark| mark.state.as_ref().is_none_or(|state| memory.has_state(state)))
    }

    /// Makes the sequence equal `ids`, computing only what differs, and returns the last token's logits (vocab).
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
        let common = common_prefix(&self.ids, ids);
        // The last token is always run, for its logits.
        self.truncate(common.min(ids.len().saturating_sub(1)));
        let new = &ids[self.ids.len()..];
        let total = new.len();
        self.extend(engine, new, Wanted::Last, |done, _| progress(done, total))?;
        engine.last_logits()
    }

    /// Appends tokens that are read. After each batch `see` gets the number of new tokens done so far and the logits wanted of
    /// that batch (rows, vocab).
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
        if tokens > engine.context() {
            return Err(EngineError::ContextFull { tokens, context: engine.context() });
        }
        engine.refresh(self)?;
        // All at once: caches that grow then do so a single time.
        engine.reserve(self, new.len())?;
        let mut done = 0;
        let size = engine.batch();
        for ids in new.chunks(size) {
            let last = done + ids.len() == new.len();
            let wanted = match wanted {
                Wanted::Last | Wanted::Best if !last => Wanted::None,
                Wanted::None | Wanted::Last | Wanted::All | Wanted::Best => wanted,
            };
            let span = Span { session: self, ids, wanted, phase: Phase::Prompt, mark: last };
            let logits = run::advance(engine, &mut [span])?.all();
            done += ids.len();
            if see(done, logits).is_break() && !last {
                self.release();
                return Err(EngineError::Interrupted);
            }
        }
        Ok(())
    }

    /// Appends a token that was chosen, and returns its logits where they are wanted: (vocab).
    pub fn decode<'e>(
        &mut self,
        engine: &'e mut Engine,
        id: u32,
        wanted: Wanted,
    ) -> Result<&'e mut [f32], EngineError> {
        let span = Span { session: self, ids: &[id], wanted, phase: Phase::Decode, mark: false };
        Ok(run::advance(engine, &mut [span])?.all())
    }

    /// Gives back pages that were taken for tokens which then were not computed.
    pub(super) fn release(&mut self) {
        let pages = self.ids.len().div_ceil(PAGE_TOKENS);
        self.tables.iter_mut().for_each(|table| table.truncate(pages));
    }
}

/// Tokens that both begin with.
pub fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    // By stretches, so that long equal histories are compared as memory.
    const STRETCH: usize = 256;
    let whole = a.chunks_exact(STRETCH).zip(b.chunks_exact(STRETCH)).take_while(|(a, b)| a == b).count() * STRETCH;
    whole + a[whole..].iter().zip(&b[whole..]).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::pool::Pool;

    /// A session of so many tokens over these windows, with all its pages.
    fn session(pool: &Pool, tokens: usize, windows: &[Option<usize>], states: bool) -> Session {
        let table = || {
            let mut table = Table::default();
            (0..tokens.div_ceil(PAGE_TOKENS)).for_each(|_| table.push(pool.take().unwrap()));
            table
        };
        Session {
            ids: (0..tokens as u32).collect(),
            shape: Some(Arc::new(Shape { windows: windows.to_vec(), states })),
            tables: windows.iter().map(|_| table()).collect(),
            marks: vec![],
        }
    }

    #[test]
    fn what_no_window_reaches_goes_back_and_marks_keep_theirs() {
        let pool = Pool::new(100);
        let mut a = session(&pool, 640, &[None, Some(128)], false);
        assert_eq!(pool.free(), 80);
        a.marks.push(Mark { position: 300, state: None, kept: true });
        a.trim();
        // A token at 640 sees 513 to 640: pages 8 and 9; one at 300 sees 173 to 300: pages 2 to 4.
        let held: Vec<usize> = (0..10).filter(|&at| a.tables[1].pages[at].is_some()).collect();
        assert_eq!(held, [2, 3, 4, 8, 9]);
        assert_eq!((a.tables[1].numbers[0], a.tables[1].numbers[8]), (NO_PAGE, 18));
        assert_eq!(pool.free(), 85);
        assert_eq!(
            [640, 639, 500, 301, 300, 299, 256, 255, 200, 0].map(|n| a.resumable(n)),
            [640, 639, 320, 301, 300, 299, 256, 255, 0, 0]
        );
        let b = a.share(300, false);
        assert_eq!((b.ids.len(), b.tables[1].pages.len(), b.marks.len()), (300, 5, 1));
        drop(a);
        assert_eq!(pool.free(), 100 - 5 - 3);
        drop(b);
        assert_eq!(pool.free(), 100);
    }

    #[test]
    fn with_states_it_goes_on_from_marks_only_and_a_few_loose_ones_trail() {
        let (pool, states) = (Pool::new(100), Pool::new(10));
        let mut a = session(&pool, 0, &[None], true);
        for tokens in [64, 100, 101, 102, 103, 104, 105] {
            while a.ids.len() < tokens {
                a.ids.push(7);
            }
            while a.tables[0].pages.len() < tokens.div_ceil(PAGE_TOKENS) {
                a.tables[0].push(pool.take().unwrap());
            }
            a.mark(states.take(), tokens == 64);
            a.trim();
        }
        assert_eq!(a.marks.iter().map(|mark| mark.position).collect::<Vec<_>>(), [64, 102, 103, 104, 105]);
        assert_eq!(states.free(), 5);
        assert_eq!([105, 104, 101, 64, 63].map(|n| a.resumable(n)), [105, 104, 64, 64, 0]);
        assert_eq!((a.truncate(103), a.marks.len(), states.free()), (103, 3, 7));
        assert_eq!((a.truncate(70), a.ids.len(), states.free()), (64, 64, 9));
    }

    #[test]
    fn common_prefixes_of_any_length_are_found() {
        let a: Vec<u32> = (0..1000).collect();
        for n in [0, 1, 255, 256, 257, 600, 999] {
            let mut b = a.clone();
            b[n] = 5000;
            assert_eq!(common_prefix(&a, &b), n);
            assert_eq!(common_prefix(&a[..n], &a), n);
        }
        assert_eq!(common_prefix(&a, &a), 1000);
    }
}
