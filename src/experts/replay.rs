//! The simulator: a trace, a policy and sizes of tiers in; hits, bytes and modelled times out.
//!
//! It drives the same `Pager` as the engine, token by token. Promotions of a policy that moves between tokens are usable
//! from the next token on, as in the engine. Below VRAM there may be a RAM tier (exclusive: what is promoted leaves it, what
//! is evicted from VRAM goes back to the disk); a miss in both is read from the disk and stays in RAM when its score
//! is above the least one there.

use serde::Serialize;

use super::Grid;
use super::belady::belady;
use super::pager::{Pager, Place, PoolSpec};
use super::policy::{Named, Policy, UPLOADS};
use super::tally::Tally;
use super::trace::{Phase, Trace};

/// Which experts compete for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pools {
    /// All of a class.
    Global,
    /// Those of one layer, the same number of slots each.
    PerLayer,
}

/// Size of a tier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Capacity {
    Bytes(u64),
    /// Of all experts.
    Fraction(f64),
}

/// Effective rates, in bytes a second, for the modelled times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speeds {
    pub vram: f64,
    pub ram: f64,
    pub bus: f64,
    pub disk: f64,
    /// Seconds a layer to bring the two sides together.
    pub sync_s: f64,
}

/// What to replay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setup {
    pub named: Named,
    /// Constants of the pager's own policy.
    pub policy: Policy,
    pub pools: Pools,
    pub vram: Capacity,
    /// `None`: all of the rest is in RAM.
    pub ram: Option<Capacity>,
    pub devices: usize,
    /// The prompt feeds the scores and fills empty slots.
    pub seed: bool,
    pub speeds: Speeds,
}

/// A stretch of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    Prefill,
    /// The first 64 generated tokens.
    First64,
    /// Generated tokens after those.
    Steady,
    /// All generated tokens.
    Decode,
    /// The second half of the generated tokens.
    SecondHalf,
}

impl Window {
    pub const ALL: [Window; 5] = [Window::Prefill, Window::First64, Window::Steady, Window::Decode, Window::SecondHalf];

    pub(super) fn holds(self, phase: Phase, nth: usize, decoded: usize) -> bool {
        let generated = phase != Phase::Prefill;
        match self {
            Window::Prefill => !generated,
            Window::First64 => generated && nth < 64,
            Window::Steady => generated && nth >= 64,
            Window::Decode => generated,
            Window::SecondHalf => generated && nth >= decoded / 2,
        }
    }
}

/// What was counted in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    pub tokens: u64,
    pub picks: u64,
    pub hits: u64,
    pub disk_reads: u64,
    pub uploads: u64,
    /// Read by the GPU from VRAM, by the CPU from RAM, sent over the bus, read from the disk.
    pub vram_bytes: u64,
    pub ram_bytes: u64,
    pub bus_bytes: u64,
    pub disk_bytes: u64,
    /// Modelled: misses computed on the CPU where they lie.
    pub seconds_computed: f64,
    /// Modelled: every miss uploaded and waited for.
    pub seconds_uploaded: f64,
}

impl Measured {
    /// Hits of all picks; 0 when there were none.
    pub fn hit_rate(&self) -> f64 {
        if self.picks == 0 { 0.0 } else { self.hits as f64 / self.picks as f64 }
    }

    /// Uploads a mixture layer and token.
    pub fn uploads_per_layer(&self, layers: usize) -> f64 {
        self.uploads as f64 / (self.tokens.max(1) * layers as u64) as f64
    }

    /// Modelled tokens a second: misses computed on the CPU, misses uploaded and waited for.
    pub fn rates(&self) -> [f64; 2] {
        [self.seconds_computed, self.seconds_uploaded].map(|s| if s > 0.0 { self.tokens as f64 / s } else { 0.0 })
    }
}

/// The result of a replay.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub named: Named,
    pub slots: usize,
    pub windows: Vec<(Window, Measured)>,
}

impl Outcome {
    /// What was counted in this window.
    pub fn window(&self, window: Window) -> Measured {
        self.windows.iter().find(|(w, _)| *w == window).map(|(_, m)| *m).unwrap_or_default()
    }
}

impl Capacity {
    /// Experts that fit of `of`, whose bytes are part of `total`.
    fn slots(self, of: usize, total: u64) -> usize {
        match self {
            Capacity::Fraction(part) => (part * of as f64).round() as usize,
            Capacity::Bytes(bytes) => (bytes as f64 / total.max(1) as f64 * of as f64).floor() as usize,
        }
        .min(of)
    }
}

/// The pools of a setup over this grid.
pub fn pools(grid: &Grid, setup: &Setup) -> Vec<PoolSpec> {
    let sets: Vec<Vec<usize>> = match setup.pools {
        Pools::Global => (0..grid.class_bytes.len()).map(|class| grid.class_layers(class).collect()).collect(),
        Pools::PerLayer => (0..grid.layers()).map(|layer| vec![layer]).collect(),
    };
    let mut specs = vec![];
    for layers in sets {
        let slots = setup.vram.slots(layers.len() * grid.experts, grid.total_bytes());
        for device in 0..setup.devices.max(1) {
            let share = slots * (device + 1) / setup.devices.max(1) - slots * device / setup.devices.max(1);
            specs.push(PoolSpec { device: device as u8, layers: layers.clone(), slots: share });
        }
    }
    specs
}

/// Replays a trace.
pub fn replay(trace: &Trace, setup: &Setup) -> Outcome {
    let grid = trace.header.grid();
    let mut specs = pools(&grid, setup);
    if matches!(setup.named, Named::Belady | Named::BeladyCap) {
        specs.iter_mut().for_each(|spec| spec.device = 0);
    }
    let mut tally = Tally::new(trace, &grid, setup);
    match setup.named.policy(&setup.policy) {
        Some(policy) => online(trace, setup, Pager::new(grid, &specs, policy), &mut tally),
        None => match setup.named {
            Named::StaticInSample | Named::StaticHeldOut => fixed(trace, setup, grid, &specs, &mut tally),
            _ => optimal(trace, setup, &grid, &specs, &mut tally),
        },
    }
    tally.outcome(setup.named, specs.iter().map(|spec| spec.slots).sum())
}

/// Where decoding begins.
fn first_decoded(trace: &Trace) -> usize {
    trace.tokens.iter().position(|token| token.phase != Phase::Prefill).unwrap_or(trace.len())
}

fn online(trace: &Trace, setup: &Setup, mut pager: Pager, tally: &mut Tally) {
    let mut was_prompt = false;
    for (t, token) in trace.tokens.iter().enumerate() {
        let prompt = token.phase == Phase::Prefill;
        if prompt && !setup.seed {
            continue;
        }
        if was_prompt && !prompt {
            let scores = pager.scores().clone();
            let filled = pager.fill(|entry| scores.crf(entry));
            tally.fill(&mut pager, &filled);
        }
        was_prompt = prompt;
        for layer in 0..trace.header.layers.len() {
            let ids = trace.picks(t, layer);
            let experts = || ids.iter().map(|&id| usize::from(id));
            tally.step(layer, ids, |expert| matches!(pager.place(layer, expert), Place::Resident { .. }));
            if prompt {
                pager.feed(layer, experts());
                pager.scores_mut().end_step();
            } else {
                pager.pick(layer, experts());
                let moved = pager.end_step(layer, experts(), u64::MAX);
                tally.settle(&mut pager, &moved);
            }
        }
        pager.end_token(prompt);
        if !prompt {
            let moved = pager.decide(u64::MAX);
            tally.settle(&mut pager, &moved);
        }
        tally.end_token(t);
    }
}

/// A map that never changes: the experts picked most in all decoded tokens, or in their first half (with the prompt, when
/// that seeds).
fn fixed(trace: &Trace, setup: &Setup, grid: Grid, specs: &[PoolSpec], tally: &mut Tally) {
    let from = if setup.seed { 0 } else { first_decoded(trace) };
    let to = match setup.named {
        Named::StaticInSample => trace.len(),
        _ => first_decoded(trace) + (trace.len() - first_decoded(trace)) / 2,
    };
    let mut counts = vec![0u32; grid.entries()];
    for t in from..to {
        for layer in 0..grid.layers() {
            trace.picks(t, layer).iter().for_each(|&id| counts[grid.entry(layer, usize::from(id))] += 1);
        }
    }
    let mut pager = Pager::new(grid, specs, setup.policy);
    for promotion in pager.fill(|entry| f64::from(counts[entry])) {
        pager.done(&promotion);
    }
    for t in first_decoded(trace)..trace.len() {
        for layer in 0..trace.header.layers.len() {
            tally.step(layer, trace.picks(t, layer), |expert| {
                matches!(pager.place(layer, expert), Place::Resident { .. })
            });
        }
        tally.end_token(t);
    }
}

fn optimal(trace: &Trace, setup: &Setup, grid: &Grid, specs: &[PoolSpec], tally: &mut Tally) {
    let mut slots: Vec<usize> = vec![];
    let mut pool_of = vec![0; grid.layers()];
    let mut last: Option<&PoolSpec> = None;
    for spec in specs {
        // Devices of one set of layers are one pool to who knows the future.
        if last.is_some_and(|last| last.layers == spec.layers) {
            if let Some(pool) = slots.last_mut() {
                *pool += spec.slots;
            }
        } else {
            spec.layers.iter().for_each(|&layer| pool_of[layer] = slots.len());
            slots.push(spec.slots);
        }
        last = Some(spec);
    }
    let cap = (setup.named == Named::BeladyCap).then(|| {
        let uploads = match setup.policy.budget {
            super::policy::Budget::Uploads(uploads) => uploads,
            super::policy::Budget::Bytes(bytes) => {
                bytes as f64 * grid.entries() as f64 / grid.total_bytes() as f64 / grid.layers() as f64
            }
            super::policy::Budget::Unlimited => UPLOADS * grid.used as f64,
        };
        (uploads * grid.layers() as f64).round() as usize
    });
    let from = if setup.seed { 0 } else { first_decoded(trace) };
    let mut current = from;
    belady(trace, from, &pool_of, &slots, cap, |t, layer, hits, uploads| {
        if t != current {
            tally.end_token(current);
            current = t;
        }
        tally.known(layer, hits, uploads);
    });
    if from < trace.len() {
        tally.end_token(current);
    }
}
