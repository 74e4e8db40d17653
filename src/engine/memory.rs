//! The memory of all sequences of a model: its pools of pages and states, and the past that is kept in them.
//!
//! One budget: every page and state exists from the start, as far as the executors have room, and nothing is computed
//! before its place is taken. What is taken comes from what is free, then from the past (`past`), and when neither has
//! anything left the caller must end or preempt a sequence. Nothing here touches a device.

use std::sync::Arc;
use std::time::Instant;

use super::past::{Costs, Past, Victim, Want};
use super::pool::{Held, Pool};
use super::session::{Session, Shape};
use crate::plan::{PAGE_TOKENS, Plan};

/// The past's ids and tables take at most this part of what its pages do.
const TREE_PART: usize = 16;
/// And never less than this is allowed.
const LEAST_TREE: usize = 4 << 20;

/// Pools and the past.
#[derive(Debug)]
pub struct Memory {
    shape: Arc<Shape>,
    groups: Vec<Pool>,
    states: Pool,
    past: Past,
    costs: Learned,
    started: Instant,
    page_bytes: usize,
}

/// How much is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Places that running sequences hold, and all that are held, over all page groups.
    pub running_pages: usize,
    pub held_pages: usize,
    pub pages: usize,
    pub held_states: usize,
    pub states: usize,
    pub branches: usize,
}

impl Memory {
    /// For so many pages, by group, and states; `page_bytes` of the first group.
    pub(super) fn new(plan: &Plan, pages: &[usize], states: usize, page_bytes: usize) -> Memory {
        Memory {
            shape: Arc::new(Shape::of(plan)),
            groups: pages.iter().map(|&pages| Pool::new(pages)).collect(),
            states: Pool::new(states),
            past: Past::default(),
            costs: Learned::default(),
            started: Instant::now(),
            page_bytes,
        }
    }

    pub(super) fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }

    pub(super) fn pools(&self) -> &[Pool] {
        &self.groups
    }

    pub(super) fn has_state(&self, state: &Held) -> bool {
        state.is_of(&self.states)
    }

    fn now(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// A sequence that remembers as much of how these ids begin as is kept, without the last.
    pub(super) fn attach(&mut self, ids: &[u32]) -> Session {
        let now = self.now();
        match self.past.find(ids) {
            Some((branch, tokens)) => self.past.attach(branch, tokens, now),
            None => Session::new(),
        }
    }

    /// Tokens of how these ids begin that are kept.
    pub(super) fn kept(&self, ids: &[u32]) -> usize {
        self.past.find(ids).map_or(0, |(_, tokens)| tokens)
    }

    /// Keeps what a sequence remembers for those that begin alike.
    pub(super) fn keep(&mut self, session: &Session, said: &[u32]) {
        if session.is_of(self) {
            self.past.keep(session, said, self.now());
        }
    }

    /// The sequences that are kept.
    pub(super) fn past(&self) -> &Past {
        &self.past
    }

    /// Takes a place; `None` when neither a free one nor one of the past is left. `room`: places that the caches have room
    /// for now, which the past gives up before they must grow. `lost` hears what goes, before it does.
    pub(super) fn take(
        &mut self,
        want: Want,
        room: Option<usize>,
        mut lost: impl FnMut(&Past, Victim),
    ) -> Option<Held> {
        let pool = match want {
            Want::Page(group) => self.groups[group].clone(),
            Want::State => self.states.clone(),
        };
        let (now, costs) = (self.now(), self.costs.costs());
        let mut give_way = |past: &mut Past| {
            let victim = past.victim(want, &costs, now);
            if let Some(victim) = victim {
                lost(past, victim);
                past.lose(victim);
            }
            victim.is_some()
        };
        while room.is_some_and(|room| pool.free_below(room) == 0) && give_way(&mut self.past) {}
        loop {
            if let Some(held) = pool.take() {
                return Some(held);
            }
            if !give_way(&mut self.past) {
                return None;
            }
        }
    }

    /// Lets branches go until ids and tables are a small part of what is kept.
    pub(super) fn limit_tree(&mut self, mut lost: impl FnMut(&Past, Victim)) {
        let pages: usize = self.groups.first().map_or(0, |pool| pool.all());
        let most = (pages * self.page_bytes / TREE_PART).max(LEAST_TREE);
        while self.past.tree_bytes() > most
            && let Some(victim) = self.past.cheapest(&self.costs.costs(), self.now())
        {
            lost(&self.past, victim);
            self.past.lose(victim);
        }
    }

    /// Pages that a new sequence could get, in the scarcest group.
    pub(super) fn free_pages(&self) -> usize {
        let held_only_by_the_past = |pool: &Pool| pool.obtainable();
        self.groups.iter().map(held_only_by_the_past).min().unwrap_or(usize::MAX)
    }

    /// Pages of the scarcest group that a sequence of these ids and one more would take, beside those that it would share with
    /// running ones.
    pub(super) fn needed_pages(&self, ids: &[u32]) -> usize {
        let all = (ids.len() + 1).div_ceil(PAGE_TOKENS);
        let Some((branch, tokens)) = self.past.find(ids) else { return all };
        let whole = tokens / PAGE_TOKENS;
        let runs = |table: &super::session::Table| {
            table.pages[..whole].iter().flatten().filter(|page| page.is_running()).count()
        };
        all - self.past.session(branch).tables.iter().map(runs).min().unwrap_or(0)
    }

    /// A run computed `tokens` prompt tokens with so many before them on average, and took so long.
    pub(super) fn learn(&mut self, tokens: usize, depth: f64, seconds: f64) {
        self.costs.add(tokens as f64, tokens as f64 * depth, seconds);
    }

    /// What prompts cost, as far as it is known.
    pub fn costs(&self) -> Costs {
        self.costs.costs()
    }

    /// Forgets the past.
    pub fn clear(&mut self) {
        self.past.clear();
    }

    /// How much is held now.
    pub fn usage(&self) -> Usage {
        let sum = |of: fn(&Pool) -> usize| self.groups.iter().map(of).sum();
        Usage {
            running_pages: sum(Pool::running),
            held_pages: sum(|pool| pool.all() - pool.free()),
            pages: sum(Pool::all),
            held_states: self.states.all() - self.states.free(),
            states: self.states.all(),
            branches: self.past.len(),
        }
    }

    /// Tokens whose keys and values are held, running or kept.
    pub(super) fn held_tokens(&self) -> usize {
        self.groups.first().map_or(0, |pool| (pool.all() - pool.free()) * PAGE_TOKENS)
    }
}

/// Costs by least squares over the runs so far, of which older ones count less.
#[derive(Clone, Copy, Debug, Default)]
struct Learned {
    xx: f64,
    xy: f64,
    yy: f64,
    xs: f64,
    ys: f64,
}

impl Learned {
    /// `x` tokens, `y` tokens times the tokens before them.
    fn add(&mut self, x: f64, y: f64, seconds: f64) {
        const KEPT: f64 = 0.95;
        // Depth in thousands, so that both terms have the same scale.
        let y = y / 1e3;
        for (sum, new) in [
            (&mut self.xx, x * x),
            (&mut self.xy, x * y),
            (&mut self.yy, y * y),
            (&mut self.xs, x * seconds),
            (&mut self.ys, y * seconds),
        ] {
            *sum = *sum * KEPT + new;
        }
    }

    fn costs(&self) -> Costs {
        if self.xx == 0.0 {
            return Costs::default();
        }
        let determinant = self.xx * self.yy - self.xy * self.xy;
        let alone = Costs { token: self.xs / self.xx, depth: 0.0 };
        // Runs at one depth only say nothing of it.
        if determinant <= 1e-6 * self.xx * self.yy {
            return alone;
        }
        let token = (self.xs * self.yy - self.ys * self.xy) / determinant;
        let depth = (self.xx * self.ys - self.xy * self.xs) / determinant / 1e3;
        if token > 0.0 && depth >= 0.0 { Costs { token, depth } } else { alone }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_learned_from_runs_at_several_depths() {
        let mut learned = Learned::default();
        assert_eq!(learned.costs(), Costs::default());
        learned.add(512.0, 0.0, 512.0 * 0.01);
        assert!((learned.costs().token - 0.01).abs() < 1e-9);
        for depth in [0.0, 512.0, 4096.0, 16000.0] {
            learned.add(512.0, 512.0 * depth, 512.0 * (0.01 + 2e-6 * depth));
        }
        let costs = learned.costs();
        assert!((costs.token - 0.01).abs() < 1e-6 && (costs.depth - 2e-6).abs() < 1e-9, "{costs:?}");
        assert!((costs.seconds(0, 1000) - (10.0 + 1.0)).abs() < 1e-2);
    }
}
