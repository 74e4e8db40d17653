//! What a replay counts: picks, hits, bytes and modelled times by window, and the tier of RAM below the pager's.

use super::Grid;
use super::pager::{Pager, Promotion};
use super::policy::Named;
use super::replay::{Capacity, Measured, Outcome, Setup, Speeds, Window};
use super::score::Scores;
use super::trace::{Phase, Trace};

/// Counts what happens, by window.
pub(super) struct Tally<'a> {
    trace: &'a Trace,
    grid: Grid,
    speeds: Speeds,
    nth: Vec<usize>, // which decoded token a token is
    decoded: usize,
    now: Measured, // of the current token
    windows: Vec<(Window, Measured)>,
    ram: Option<RamTier>,
}

impl<'a> Tally<'a> {
    pub(super) fn new(trace: &'a Trace, grid: &Grid, setup: &Setup) -> Tally<'a> {
        let mut decoded = 0;
        let nth = trace
            .tokens
            .iter()
            .map(|token| {
                decoded += usize::from(token.phase != Phase::Prefill);
                decoded.saturating_sub(1)
            })
            .collect();
        let ram = setup.ram.map(|ram| RamTier::new(grid, ram, setup.policy.half_life));
        Tally {
            trace,
            grid: grid.clone(),
            speeds: setup.speeds,
            nth,
            decoded,
            now: Measured::default(),
            windows: Window::ALL.map(|window| (window, Measured::default())).to_vec(),
            ram,
        }
    }

    /// A layer's picks, before anything moves.
    pub(super) fn step(&mut self, layer: usize, ids: &[u16], resident: impl Fn(usize) -> bool) {
        let (mut hits, mut reads) = (0, 0);
        for &id in ids {
            let expert = usize::from(id);
            if resident(expert) {
                hits += 1;
            } else if let Some(ram) = &mut self.ram {
                reads += usize::from(!ram.holds(self.grid.entry(layer, expert)));
            }
            if let Some(ram) = &mut self.ram {
                ram.touch(self.grid.entry(layer, expert), resident(expert));
            }
        }
        self.count(layer, ids.len(), hits, reads);
    }

    /// As `step` and `settle`, when only the counts are known; for the two upper tiers.
    pub(super) fn known(&mut self, layer: usize, hits: Option<(usize, usize)>, uploads: usize) {
        if let Some((hits, picks)) = hits {
            self.count(layer, picks, hits, 0);
        }
        self.now.uploads += uploads as u64;
        self.now.bus_bytes += self.grid.bytes(layer) * uploads as u64;
    }

    fn count(&mut self, layer: usize, used: usize, hits: usize, reads: usize) {
        let e = self.grid.bytes(layer);
        let misses = used - hits;
        let (hit, near, far) = (hits as u64 * e, (misses - reads) as u64 * e, reads as u64 * e);
        let now = &mut self.now;
        now.picks += used as u64;
        now.hits += hits as u64;
        now.disk_reads += reads as u64;
        now.vram_bytes += hit;
        now.ram_bytes += near;
        now.disk_bytes += far;
        let r = &self.speeds;
        let dense = self.trace.header.layers[layer].dense_bytes as f64 / r.vram + r.sync_s;
        let disk = far as f64 / r.disk;
        now.seconds_computed += dense + (hit as f64 / r.vram).max((near + far) as f64 / r.ram) + disk;
        now.seconds_uploaded += dense + (used as u64 * e) as f64 / r.vram + (misses as u64 * e) as f64 / r.bus + disk;
    }

    /// What the pager wants moved has arrived.
    pub(super) fn settle(&mut self, pager: &mut Pager, moved: &[Promotion]) {
        for promotion in moved {
            pager.done(promotion);
            self.now.uploads += 1;
            self.now.bus_bytes += promotion.bytes;
            if let Some(ram) = &mut self.ram {
                let entry = self.grid.entry(promotion.layer, promotion.expert);
                if !ram.leave(entry) {
                    self.now.disk_bytes += promotion.bytes;
                    self.now.disk_reads += 1;
                }
            }
        }
    }

    /// What a prompt brings to empty slots counts with the prompt: no generated token pays for it.
    pub(super) fn fill(&mut self, pager: &mut Pager, moved: &[Promotion]) {
        self.settle(pager, moved);
        let filled = Measured { seconds_computed: 0.0, seconds_uploaded: 0.0, ..std::mem::take(&mut self.now) };
        let prompt = self.windows.iter_mut().filter(|(window, _)| *window == Window::Prefill);
        prompt.for_each(|(_, sum)| add(sum, &filled));
    }

    pub(super) fn end_token(&mut self, token: usize) {
        let mut now = std::mem::take(&mut self.now);
        now.tokens = 1;
        // A promotion costs what the link can not do while the token is computed.
        let link = now.bus_bytes as f64 / self.speeds.bus;
        now.seconds_computed += (link - now.seconds_computed).max(0.0);
        let phase = self.trace.tokens[token].phase;
        for (window, sum) in &mut self.windows {
            if window.holds(phase, self.nth[token], self.decoded) {
                add(sum, &now);
            }
        }
        if let Some(ram) = &mut self.ram {
            ram.scores.end_token(1.0);
        }
    }

    pub(super) fn outcome(self, named: Named, slots: usize) -> Outcome {
        Outcome { named, slots, windows: self.windows }
    }
}

fn add(sum: &mut Measured, now: &Measured) {
    sum.tokens += now.tokens;
    sum.picks += now.picks;
    sum.hits += now.hits;
    sum.disk_reads += now.disk_reads;
    sum.uploads += now.uploads;
    sum.vram_bytes += now.vram_bytes;
    sum.ram_bytes += now.ram_bytes;
    sum.bus_bytes += now.bus_bytes;
    sum.disk_bytes += now.disk_bytes;
    sum.seconds_computed += now.seconds_computed;
    sum.seconds_uploaded += now.seconds_uploaded;
}

/// Experts in RAM, by score.
struct RamTier {
    scores: Scores,
    held: Vec<bool>,
    left: u64,          // bytes
    bytes_of: Vec<u64>, // by layer
    experts: usize,
}

impl RamTier {
    fn new(grid: &Grid, capacity: Capacity, half_life: f64) -> RamTier {
        let left = match capacity {
            Capacity::Bytes(bytes) => bytes,
            Capacity::Fraction(part) => (part * grid.total_bytes() as f64) as u64,
        };
        RamTier {
            scores: Scores::new(grid.entries(), half_life),
            held: vec![false; grid.entries()],
            left,
            bytes_of: (0..grid.layers()).map(|layer| grid.bytes(layer)).collect(),
            experts: grid.experts,
        }
    }

    fn holds(&self, entry: usize) -> bool {
        self.held[entry]
    }

    fn bytes(&self, entry: usize) -> u64 {
        self.bytes_of[entry / self.experts]
    }

    /// An expert was used; unless it is in VRAM it is now here, when it is worth it.
    fn touch(&mut self, entry: usize, in_vram: bool) {
        self.scores.touch(entry);
        if in_vram || self.held[entry] {
            return;
        }
        let needed = self.bytes(entry);
        let mut least: Vec<usize> = vec![];
        if self.left < needed {
            least = (0..self.held.len()).filter(|&e| self.held[e]).collect();
            least.sort_unstable_by(|a, b| self.scores.crf(*b).total_cmp(&self.scores.crf(*a)));
        }
        while self.left < needed {
            match least.pop() {
                Some(victim) if self.scores.crf(victim) <= self.scores.crf(entry) => {
                    self.leave(victim);
                }
                _ => return,
            }
        }
        self.left -= needed;
        self.held[entry] = true;
    }

    /// An expert leaves; whether it was here.
    fn leave(&mut self, entry: usize) -> bool {
        let was = std::mem::replace(&mut self.held[entry], false);
        if was {
            self.left += self.bytes(entry);
        }
        was
    }
}
