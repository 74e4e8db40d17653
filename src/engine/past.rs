//! Sequences that are over, kept for whoever begins alike, and what makes way when their memory is wanted.
//!
//! A branch holds the pages of its whole history; branches that begin alike hold the same pages, so together they are a
//! tree that costs what its distinct parts cost. What goes is what costs least to lose: the seconds that computing it
//! again takes, at its depth, times how likely it is wanted, by the memory that it gives back. That is always the end of a
//! branch, as long as nobody else holds it, or a mark between others. So a short request that came later goes before a
//! long conversation does, and of a conversation its last tokens before its first.

use super::pool::Held;
use super::session::{Session, common_prefix};
use crate::plan::PAGE_TOKENS;

/// A branch is half as likely to be wanted after so many seconds.
const HALF_LIFE: f64 = 1800.0;
/// Uses that make a branch more likely to be wanted, at most.
const MOST_USES: u32 = 4;

/// What computing tokens takes: seconds a token, and seconds a token and token before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    pub token: f64,
    pub depth: f64,
}

impl Default for Costs {
    /// Before anything was measured: only proportions matter.
    fn default() -> Costs {
        Costs { token: 1e-2, depth: 1e-7 }
    }
}

impl Costs {
    /// Seconds for the tokens from one position to another.
    pub fn seconds(&self, from: usize, to: usize) -> f64 {
        let (from, to) = (from as f64, to.max(from) as f64);
        (to - from) * (self.token + self.depth * (from + to) / 2.0)
    }
}

/// One sequence that is over.
#[derive(Debug)]
struct Branch {
    session: Session,
    /// Ids that were said behind it and never computed, such as the last of an answer.
    said: Vec<u32>,
    used: f64, // seconds, on the caller's clock
    uses: u32,
}

impl Branch {
    fn likelihood(&self, now: f64) -> f64 {
        0.5_f64.powf((now - self.used).max(0.0) / HALF_LIFE) * f64::from(1 + self.uses.min(MOST_USES))
    }
}

/// What can make way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Victim {
    /// A branch's tokens from here on.
    Tail { branch: usize, from: usize },
    /// A mark of a branch, and what only it holds.
    Mark { branch: usize, position: usize },
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// A page of this group.
    Page(usize),
    State,
}

/// Branches that are kept.
#[derive(Debug, Default)]
pub struct Past {
    branches: Vec<Branch>,
}

impl Past {
    /// Number of branches.
    pub fn len(&self) -> usize {
        self.branches.len()
    }

    /// A branch's memory.
    pub fn session(&self, branch: usize) -> &Session {
        &self.branches[branch].session
    }

    /// All of them.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.branches.iter().map(|branch| &branch.session)
    }

    /// Bytes of ids and tables, which are no pages.
    pub fn tree_bytes(&self) -> usize {
        self.sessions().map(|s| 4 * s.ids.len() + 32 * s.tables.iter().map(|t| t.pages.len()).sum::<usize>()).sum()
    }

    /// The branch that holds most of how these ids begin, and the position to go on from. All but the last id count: that one is
    /// computed for its logits.
    pub fn find(&self, ids: &[u32]) -> Option<(usize, usize)> {
        let most = ids.len().saturating_sub(1);
        let held = |(at, branch): (usize, &Branch)| {
            let common = common_prefix(&branch.session.ids, ids).min(most);
            (at, branch.session.resumable(common))
        };
        // Of equals the one that was used last: it is the least likely to go.
        let used = |at: usize| self.branches[at].used;
        let found = self.branches.iter().enumerate().map(held).filter(|(_, tokens)| *tokens > 0);
        found.max_by(|a, b| a.1.cmp(&b.1).then(used(a.0).total_cmp(&used(b.0))))
    }

    /// A sequence that begins with the branch's first `tokens`.
    pub fn attach(&mut self, branch: usize, tokens: usize, now: f64) -> Session {
        let branch = &mut self.branches[branch];
        (branch.used, branch.uses) = (now, branch.uses + 1);
        branch.session.share(tokens, false)
    }

    /// All ids of the branches, with those that were said and never computed.
    pub fn texts(&self) -> impl Iterator<Item = Vec<u32>> {
        self.branches.iter().map(|branch| [&branch.session.ids[..], &branch.said[..]].concat())
    }

    /// Keeps what a sequence remembers, and what was said behind it. What it begins with needs no branch of its own any more.
    pub fn keep(&mut self, session: &Session, said: &[u32], now: f64) {
        let tokens = session.resumable(session.ids.len());
        if tokens == 0 {
            return;
        }
        let ids = &session.ids[..tokens];
        let mut uses = 0;
        let covers = |branch: &&mut Branch| branch.session.ids.len() >= tokens && branch.session.ids.starts_with(ids);
        if let Some(branch) = self.branches.iter_mut().find(covers)
            && branch.session.resumable(tokens) == tokens
        {
            branch.used = now;
            if branch.session.ids.len() == tokens && !said.is_empty() {
                branch.said = said.to_vec();
            }
            return;
        }
        self.branches.retain(|branch| {
            let goes = ids.starts_with(&branch.session.ids);
            uses = if goes { uses.max(branch.uses) } else { uses };
            !goes
        });
        self.branches.push(Branch { session: session.share(tokens, true), said: said.to_vec(), used: now, uses });
    }

    /// What costs least to lose among what gives back something of the wanted kind.
    pub fn victim(&self, want: Want, costs: &Costs, now: f64) -> Option<Victim> {
        let mut best: Option<(f64, Victim)> = None;
        for (at, branch) in self.branches.iter().enumerate() {
            let likelihood = branch.likelihood(now);
            let mut offer = |seconds: f64, places: usize, victim: Victim| {
                let value = seconds * likelihood / places.max(1) as f64;
                if places > 0 && best.is_none_or(|(least, _)| value < least) {
                    best = Some((value, victim));
                }
            };
            let session = &branch.session;
            if let Want::Page(group) = want {
                let last = session.tables[group].pages.iter().rposition(Option::is_some);
                if let Some(page) = last.filter(|&page| alone(session.tables[group].pages[page].as_ref())) {
                    let from = page * PAGE_TOKENS;
                    let again = session.resumable(from);
                    offer(costs.seconds(again, session.ids.len()), 1, Victim::Tail { branch: at, from });
                }
            }
            for (i, mark) in session.marks.iter().enumerate() {
                let before = if i == 0 { 0 } else { session.marks[i - 1].position };
                // What lies between this mark and the next goes on from the one before instead.
                let seconds = costs.seconds(before, mark.position);
                let places = match want {
                    Want::State => usize::from(alone(mark.state.as_ref())),
                    Want::Page(group) => session.pages_of_mark(group, i),
                };
                offer(seconds, places, Victim::Mark { branch: at, position: mark.position });
            }
        }
        best.map(|(_, victim)| victim)
    }

    /// The branch that costs least to lose as a whole.
    pub fn cheapest(&self, costs: &Costs, now: f64) -> Option<Victim> {
        let value = |branch: &Branch| costs.seconds(0, branch.session.ids.len()) * branch.likelihood(now);
        let order = |a: &(usize, &Branch), b: &(usize, &Branch)| value(a.1).total_cmp(&value(b.1));
        self.branches.iter().enumerate().min_by(order).map(|(branch, _)| Victim::Tail { branch, from: 0 })
    }

    /// Lets it go.
    pub fn lose(&mut self, victim: Victim) {
        let branch = match victim {
            Victim::Tail { branch, from } => {
                self.branches[branch].session.truncate(from);
                self.branches[branch].said.clear();
                branch
            }
            Victim::Mark { branch, position } => {
                let session = &mut self.branches[branch].session;
                session.marks.retain(|mark| mark.position != position);
                if let Some(shape) = session.shape.clone() {
                    session.trim_windows(&shape);
                }
                // What no mark reaches any more is of no use.
                session.truncate(session.ids.len());
                branch
            }
        };
        let session = &self.branches[branch].session;
        let is_prefix = |(at, other): (usize, &Branch)| at != branch && other.session.ids.starts_with(&session.ids);
        if session.ids.is_empty() || self.branches.iter().enumerate().any(is_prefix) {
            self.branches.swap_remove(branch);
        }
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        self.branches.clear();
    }
}

/// Whether losing it gives the place back.
fn alone(held: Option<&Held>) -> bool {
    held.is_some_and(|held| !held.is_shared())
}

impl Session {
    /// Pages of a windowed group that only this mark holds.
    fn pages_of_mark(&self, group: usize, mark: usize) -> usize {
        let Some(window) = self.shape.as_ref().and_then(|shape| shape.windows[group]) else { return 0 };
        let seen = |end: usize| {
            let first = (end + 1).saturating_sub(window) / PAGE_TOKENS;
            first..end.div_ceil(PAGE_TOKENS)
        };
        let end = self.ids.len();
        let others: Vec<_> = (self.marks.iter().enumerate().filter(|(i, _)| *i != mark).map(|(_, m)| m.position))
            .chain([end])
            .map(seen)
            .collect();
        let pages = &self.tables[group].pages;
        seen(self.marks[mark].position)
            .filter(|page| !others.iter().any(|other| other.contains(page)))
            .filter(|&page| pages.get(page).is_some_and(|page| alone(page.as_ref())))
            .count()
    }
}
