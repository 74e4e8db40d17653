//! The pager: which expert lies in which slot, and what moves next.
//!
//! A slot holds one expert of its pool's class; the pools of a class may lie on several devices, and any of them takes any
//! expert of the class. `decide` only says what should move: the caller uploads and reports `done` or `failed`, and until
//! then the expert counts as absent, so nothing ever waits for it. Never evicted are an expert that the step in flight
//! picked, one that a submission which has not finished may read (`fence`), and one that is pinned.

use super::Grid;
use super::policy::{Budget, Policy, When};
use super::score::Scores;

const EMPTY: u32 = u32::MAX;

/// Unspent budget is kept for this many tokens, so that a quiet stretch pays for a change of topic.
const SAVED_TOKENS: u64 = 8;

/// Where an expert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In no slot.
    Absent,
    /// On its way to a slot.
    Coming { pool: u16, slot: u32 },
    /// In a slot, usable.
    Resident { pool: u16, slot: u32 },
}

/// Slots of one class on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    pub device: u8,
    /// Mixture layers whose experts it takes; pools that share a layer take the same layers.
    pub layers: Vec<usize>,
    pub slots: usize,
}

/// An expert that should be brought to a slot, in place of what lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promotion {
    pub layer: usize,
    pub expert: usize,
    pub pool: usize,
    pub slot: usize,
    /// (layer, expert) that lies there.
    pub evicted: Option<(usize, usize)>,
    pub bytes: u64,
}

/// An expert that goes from one slot of its pool to another, so that its slot can be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub layer: usize,
    pub expert: usize,
    pub from: usize,
    pub to: usize,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub picks: u64,
    pub hits: u64,
    pub uploads: u64,
    pub upload_bytes: u64,
    pub tokens: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    entry: u32,
    ready: bool,
    fence: u64,
}

struct Pool {
    device: u8,
    slots: Vec<Slot>,
}

/// Pools that take the same experts.
struct Group {
    layers: Vec<usize>,
    pools: Vec<usize>,
    bytes: u64,
}

/// Residency of all experts of a model, and the policy that changes it.
pub struct Pager {
    grid: Grid,
    policy: Policy,
    scores: Scores,
    places: Vec<Place>, // (layers, experts)
    pinned: Vec<bool>,  // (layers, experts)
    pools: Vec<Pool>,
    groups: Vec<Group>,
    group_of: Vec<Option<usize>>, // by layer
    credit: u64,
    counters: Counters,
}

impl Pager {
    /// Nothing resident.
    pub fn new(grid: Grid, specs: &[PoolSpec], policy: Policy) -> Pager {
        let mut groups: Vec<Group> = vec![];
        let mut group_of = vec![None; grid.layers()];
        for (i, spec) in specs.iter().enumerate() {
            let Some(&first) = spec.layers.first() else { continue };
            match groups.iter_mut().find(|group| group.layers == spec.layers) {
                Some(group) => group.pools.push(i),
                None => {
                    spec.layers.iter().for_each(|&layer| group_of[layer] = Some(groups.len()));
                    let bytes = grid.bytes(first);
                    groups.push(Group { layers: spec.layers.clone(), pools: vec![i], bytes });
                }
            }
        }
        let empty = Slot { entry: EMPTY, ready: false, fence: 0 };
        Pager {
            scores: Scores::new(grid.entries(), policy.half_life),
            places: vec![Place::Absent; grid.entries()],
            pinned: vec![false; grid.entries()],
            pools: specs.iter().map(|s| Pool { device: s.device, slots: vec![empty; s.slots] }).collect(),
            groups,
            group_of,
            credit: 0,
            counters: Counters::default(),
            grid,
            policy,
        }
    }

    /// The layers and experts.
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// The scores, ghosts included.
    pub fn scores(&self) -> &Scores {
        &self.scores
    }

    /// The scores, to load what an earlier run saved.
    pub fn scores_mut(&mut self) -> &mut Scores {
        &mut self.scores
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Counts on from where another pager of the same model stopped.
    pub fn count_on(&mut self, counters: Counters) {
        self.counters = counters;
    }

    /// Where an expert is.
    pub fn place(&self, layer: usize, expert: usize) -> Place {
        self.places[self.grid.entry(layer, expert)]
    }

    /// Device of a pool.
    pub fn device(&self, pool: usize) -> u8 {
        self.pools[pool].device
    }

    /// Experts of this layer that are usable in some slot.
    pub fn residents(&self, layer: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..self.grid.experts).filter_map(move |expert| match self.place(layer, expert) {
            Place::Resident { pool, slot } => Some((expert, usize::from(pool), slot as usize)),
            Place::Absent | Place::Coming { .. } => None,
        })
    }

    /// Usable slots over all slots.
    pub fn filled(&self) -> (usize, usize) {
        let slots = || self.pools.iter().flat_map(|pool| &pool.slots);
        (slots().filter(|slot| slot.ready).count(), slots().count())
    }

    /// A decoded token picked these experts in a layer: counts hits, and raises scores.
    pub fn pick(&mut self, layer: usize, ids: impl Iterator<Item = usize>) {
        for expert in ids {
            let entry = self.grid.entry(layer, expert);
            self.counters.picks += 1;
            if matches!(self.places[entry], Place::Resident { .. }) {
                self.counters.hits += 1;
            }
            self.scores.touch(entry);
        }
    }

    /// Picks of a decoded token in a layer all of whose experts are resident, which nobody read.
    pub fn hit_unseen(&mut self, picks: u64) {
        self.counters.picks += picks;
        self.counters.hits += picks;
    }

    /// Whether nothing can change in a layer: all experts that compete with its own have a slot.
    pub fn is_settled(&self, layer: usize) -> bool {
        let Some(group) = self.group_of[layer].map(|group| &self.groups[group]) else { return false };
        let slots = || group.pools.iter().flat_map(|&pool| &self.pools[pool].slots);
        slots().filter(|slot| slot.ready).count() == group.layers.len() * self.grid.experts
    }

    /// A prompt token picked these: scores only.
    pub fn feed(&mut self, layer: usize, ids: impl Iterator<Item = usize>) {
        for expert in ids {
            self.scores.touch(self.grid.entry(layer, expert));
        }
    }

    /// What must be loaded before the layer's experts run, by a policy that moves them at once. Ends the layer's step.
    pub fn end_step(&mut self, layer: usize, ids: impl Iterator<Item = usize>, finished: u64) -> Vec<Promotion> {
        let mut promotions = vec![];
        if let (When::EachLayer, Some(group)) = (self.policy.when, self.group_of[layer]) {
            for expert in ids {
                let entry = self.grid.entry(layer, expert);
                if self.places[entry] != Place::Absent {
                    continue;
                }
                let victim = self.worst(group, finished);
                let rank = self.scores.rank(self.policy.ranking, entry);
                match victim {
                    Some((_, _, worth)) if rank < self.policy.gate * worth => {}
                    Some((pool, slot, _)) => promotions.push(self.promote(entry, pool, slot)),
                    None => {}
                }
            }
        }
        self.scores.end_step();
        promotions
    }

    /// A token went through all layers: the budget grows, the clock moves on.
    pub fn end_token(&mut self, prompt: bool) {
        let a_token = match self.policy.budget {
            Budget::Unlimited => u64::MAX / (2 * SAVED_TOKENS),
            Budget::Bytes(bytes) => bytes,
            Budget::Uploads(uploads) => {
                let mean = self.grid.total_bytes() as f64 / self.grid.entries().max(1) as f64;
                (uploads * self.grid.layers() as f64 * mean) as u64
            }
        };
        let most = a_token.saturating_mul(SAVED_TOKENS);
        self.credit = self.credit.saturating_add(a_token).min(most.max(self.credit));
        self.scores.end_token(if prompt { self.policy.prompt_tick } else { 1.0 });
        if !prompt {
            self.counters.tokens += 1;
        }
    }

    /// From now on this many bytes may move, beyond what tokens earn: for filling empty slots at the start.
    pub fn grant(&mut self, bytes: u64) {
        self.credit = self.credit.saturating_add(bytes);
    }

    /// What should move between two tokens. Slots whose fence is beyond `finished` are left alone.
    pub fn decide(&mut self, finished: u64) -> Vec<Promotion> {
        if self.policy.when == When::EachLayer {
            return vec![];
        }
        struct Swap {
            gain: f64,
            entry: usize,
            pool: usize,
            slot: usize,
            bytes: u64,
        }
        let ranking = self.policy.ranking;
        let mut swaps: Vec<Swap> = vec![];
        for group in &self.groups {
            let mut slots: Vec<(f64, usize, usize)> = vec![]; // worth, pool, slot; empty ones are worth nothing
            for &pool in &group.pools {
                for (i, slot) in self.pools[pool].slots.iter().enumerate() {
                    let free = slot.entry == EMPTY;
                    if slot.fence <= finished && (free || (slot.ready && !self.pinned[slot.entry as usize])) {
                        let worth = if free { -1.0 } else { self.scores.rank(ranking, slot.entry as usize) };
                        slots.push((worth, pool, i));
                    }
                }
            }
            // The least worth first; equal ones by slot, so that the pools of several devices fill evenly.
            slots.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then((a.2, a.1).cmp(&(b.2, b.1))));
            let Some(&(least, ..)) = slots.first() else { continue };
            let mut newcomers: Vec<(f64, usize)> = group
                .layers
                .iter()
                .flat_map(|&layer| (0..self.grid.experts).map(move |expert| (layer, expert)))
                .map(|(layer, expert)| self.grid.entry(layer, expert))
                .filter(|&entry| self.places[entry] == Place::Absent && self.scores.is_known(entry))
                .map(|entry| (self.scores.rank(ranking, entry), entry))
                .filter(|&(rank, _)| least < 0.0 || rank >= self.policy.gate * least)
                .collect();
            newcomers.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            for (&(rank, entry), &(worth, pool, slot)) in newcomers.iter().zip(&slots) {
                if worth >= 0.0 && rank < self.policy.gate * worth {
                    break;
                }
                swaps.push(Swap { gain: rank - worth.max(0.0), entry, pool, slot, bytes: group.bytes });
            }
        }
        swaps.sort_by(|a, b| b.gain.total_cmp(&a.gain));
        let mut promotions = vec![];
        for swap in swaps {
            if swap.bytes > self.credit {
                break;
            }
            self.credit -= swap.bytes;
            promotions.push(self.promote(swap.entry, swap.pool, swap.slot));
        }
        promotions
    }

    /// Puts the most valuable experts into all slots at once, as far as scores are known; for loading and for the static
    /// policies. `worth` orders the experts.
    pub fn fill(&mut self, worth: impl Fn(usize) -> f64) -> Vec<Promotion> {
        let mut promotions = vec![];
        for group in 0..self.groups.len() {
            let layers = self.groups[group].layers.clone();
            let entries = layers.iter().flat_map(|l| self.grid.entry(*l, 0)..self.grid.entry(*l, self.grid.experts));
            let mut best: Vec<(f64, usize)> =
                entries.map(|e| (worth(e), e)).filter(|(worth, _)| *worth > 0.0).collect();
            best.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let deepest = self.groups[group].pools.iter().map(|&pool| self.pools[pool].slots.len()).max().unwrap_or(0);
            let mut free = vec![];
            for slot in 0..deepest {
                for &pool in &self.groups[group].pools {
                    if self.pools[pool].slots.get(slot).is_some_and(|slot| slot.entry == EMPTY) {
                        free.push((pool, slot));
                    }
                }
            }
            let absent = best.into_iter().filter(|&(_, e)| self.places[e] == Place::Absent).map(|(_, e)| e);
            let pairs: Vec<(usize, (usize, usize))> = absent.zip(free).collect();
            promotions.extend(pairs.into_iter().map(|(entry, (pool, slot))| self.promote(entry, pool, slot)));
        }
        promotions
    }

    /// The expert has arrived: from now on it is used.
    pub fn done(&mut self, promotion: &Promotion) {
        let (pool, slot) = (promotion.pool, promotion.slot);
        self.pools[pool].slots[slot].ready = true;
        self.places[self.grid.entry(promotion.layer, promotion.expert)] =
            Place::Resident { pool: pool as u16, slot: slot as u32 };
        self.counters.uploads += 1;
        self.counters.upload_bytes += promotion.bytes;
    }

    /// The upload failed: the slot is free again, and the expert stays where it was.
    pub fn failed(&mut self, promotion: &Promotion) {
        self.pools[promotion.pool].slots[promotion.slot].entry = EMPTY;
        self.places[self.grid.entry(promotion.layer, promotion.expert)] = Place::Absent;
    }

    /// An expert leaves its slot; false when it is in none, or pinned.
    pub fn evict(&mut self, layer: usize, expert: usize) -> bool {
        let entry = self.grid.entry(layer, expert);
        match self.places[entry] {
            Place::Resident { pool, slot } if !self.pinned[entry] => {
                let slot = &mut self.pools[usize::from(pool)].slots[slot as usize];
                (slot.entry, slot.ready) = (EMPTY, false);
                self.places[entry] = Place::Absent;
                true
            }
            Place::Resident { .. } | Place::Coming { .. } | Place::Absent => false,
        }
    }

    /// Pins the hottest of what lies in slots, or is on its way there, in this part (0 to 1) of the slots of each layout:
    /// it is never evicted again.
    pub fn pin_hottest(&mut self, part: f64) {
        for group in &self.groups {
            let slots = || group.pools.iter().flat_map(|&pool| &self.pools[pool].slots);
            let mut held: Vec<usize> =
                slots().filter(|slot| slot.entry != EMPTY).map(|slot| slot.entry as usize).collect();
            held.sort_unstable_by(|&a, &b| self.scores.crf(b).total_cmp(&self.scores.crf(a)).then(a.cmp(&b)));
            held.truncate((part.clamp(0.0, 1.0) * slots().count() as f64) as usize);
            held.into_iter().for_each(|entry| self.pinned[entry] = true);
        }
    }

    /// Pinned experts that are usable in a slot.
    pub fn pinned(&self) -> usize {
        let resident = |(place, pinned): (&Place, &bool)| *pinned && matches!(place, Place::Resident { .. });
        self.places.iter().zip(&self.pinned).filter(|pair| resident(*pair)).count()
    }

    /// A submission of this number may read every usable slot of the pool until it has finished.
    pub fn fence(&mut self, pool: usize, submission: u64) {
        let slots = self.pools[pool].slots.iter_mut();
        slots.filter(|slot| slot.ready).for_each(|slot| slot.fence = slot.fence.max(submission));
    }

    /// Slots of a pool.
    pub fn slots(&self, pool: usize) -> usize {
        self.pools[pool].slots.len()
    }

    /// What should move before a pool is left its first `slots` slots: of the experts in the others, those that are worth more
    /// than what lies in a slot that stays, the most valuable first. They count as moved, and whom they push out as absent.
    pub fn vacate(&mut self, pool: usize, slots: usize) -> Vec<Transfer> {
        let held = &self.pools[pool].slots;
        let slots = slots.min(held.len());
        let worth = |slot: &Slot| match slot.entry {
            EMPTY => f64::NEG_INFINITY,
            entry if self.pinned[entry as usize] => f64::INFINITY,
            entry => self.scores.rank(self.policy.ranking, entry as usize),
        };
        let usable = |(_, slot): &(usize, &Slot)| slot.ready || slot.entry == EMPTY;
        let ranked = |slots: &[Slot]| -> Vec<(f64, usize)> {
            slots.iter().enumerate().filter(usable).map(|(i, slot)| (worth(slot), i)).collect()
        };
        let (mut stay, mut go) = (ranked(&held[..slots]), ranked(&held[slots..]));
        stay.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        go.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let pairs: Vec<(usize, usize)> = go
            .iter()
            .zip(&stay)
            .take_while(|(go, stay)| go.0 > stay.0)
            .map(|(go, stay)| (slots + go.1, stay.1))
            .collect();
        let mut transfers = vec![];
        for (from, to) in pairs {
            let moved = self.pools[pool].slots[from];
            let pushed = self.pools[pool].slots[to].entry;
            if pushed != EMPTY {
                self.places[pushed as usize] = Place::Absent;
            }
            self.pools[pool].slots[to] = moved;
            self.pools[pool].slots[from] = Slot { entry: EMPTY, ready: false, fence: moved.fence };
            let entry = moved.entry as usize;
            self.places[entry] = Place::Resident { pool: pool as u16, slot: to as u32 };
            transfers.push(Transfer { layer: entry / self.grid.experts, expert: entry % self.grid.experts, from, to });
        }
        transfers
    }

    /// Makes a pool smaller or larger; what lay in slots that went is absent.
    pub fn resize(&mut self, pool: usize, slots: usize) {
        let old = &mut self.pools[pool].slots;
        let gone: Vec<u32> = old.drain(slots.min(old.len())..).map(|slot| slot.entry).collect();
        old.resize(slots, Slot { entry: EMPTY, ready: false, fence: 0 });
        gone.into_iter().filter(|&entry| entry != EMPTY).for_each(|entry| self.places[entry as usize] = Place::Absent);
    }

    /// The slot that is worth the least, empty ones first: (pool, slot, worth).
    fn worst(&self, group: usize, finished: u64) -> Option<(usize, usize, f64)> {
        let mut worst: Option<(usize, usize, f64)> = None;
        for &pool in &self.groups[group].pools {
            for (i, slot) in self.pools[pool].slots.iter().enumerate() {
                if slot.entry == EMPTY {
                    return Some((pool, i, f64::NEG_INFINITY));
                }
                let entry = slot.entry as usize;
                if !slot.ready || slot.fence > finished || self.pinned[entry] || self.scores.in_step(entry) {
                    continue;
                }
                let worth = self.scores.rank(self.policy.ranking, slot.entry as usize);
                if worst.is_none_or(|(.., least)| worth < least) {
                    worst = Some((pool, i, worth));
                }
            }
        }
        worst
    }

    fn promote(&mut self, entry: usize, pool: usize, slot: usize) -> Promotion {
        let split = |entry: usize| (entry / self.grid.experts, entry % self.grid.experts);
        let (layer, expert) = split(entry);
        let held = &mut self.pools[pool].slots[slot];
        let evicted = (held.entry != EMPTY).then(|| split(held.entry as usize));
        if held.entry != EMPTY {
            self.places[held.entry as usize] = Place::Absent;
        }
        (held.entry, held.ready) = (entry as u32, false);
        self.places[entry] = Place::Coming { pool: pool as u16, slot: slot as u32 };
        Promotion { layer, expert, pool, slot, evicted, bytes: self.grid.bytes(layer) }
    }
}
