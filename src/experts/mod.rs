//! Which experts the router picks, and which of them are worth a place in fast memory.
//!
//! Policy is a function of router picks alone: no I/O, no clock, no device. So the simulator that judges a policy
//! (`replay`) and the engine that follows it run the same code, and their counters can be compared pick by pick. Times are
//! counted in tokens. An expert is named by the ordinal of its mixture layer and its index in that layer.
//!
//! The public modules are the other half: what a model needs (`shape`), what a machine has (`rig`, `rates`), where things
//! go and how fast that is (`cost`), and the RAM tier that a budget makes (`tier`, `store`, `disk`).

mod belady;
pub mod cost;
mod csv;
pub mod disk;
mod guard;
mod heat;
mod mix;
mod pager;
mod policy;
pub mod rates;
mod replay;
pub mod rig;
mod rival;
mod score;
pub mod shape;
pub mod store;
mod summary;
mod tally;
pub mod tier;
mod trace;
pub mod waves;

pub use belady::{Future, belady};
pub use guard::{Guard, Verdict};
pub use heat::{Heat, HeatError};
pub use pager::{Counters, Pager, Place, PoolSpec, Promotion, Transfer};
pub use policy::{Budget, Named, Policy, UPLOADS, When};
pub use replay::{Capacity, Measured, Outcome, Pools, Setup, Speeds, Window, replay};
pub use rival::{GpuWork, Rival, Standing, Work, predict};
pub use score::{HALF_LIFE, Ranking, Scores};
pub use summary::{Distribution, Divergence, LayerSummary, Specialist, Summary, divergence, specialists};
pub use trace::{Header, LayerInfo, Phase, TokenInfo, Trace, TraceError, write_token};

/// The mixture layers of a model, as far as paging is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token picks in a layer.
    pub used: usize,
    /// By mixture layer: which class it belongs to. Experts of one class have the same bytes in the same formats, so a
    /// slot holds any of them.
    pub class_of: Vec<usize>,
    /// By class: bytes of one expert.
    pub class_bytes: Vec<u64>,
}

impl Grid {
    /// The shape of these layers, each with its layout's name and bytes of an expert.
    pub fn new(experts: usize, used: usize, layers: impl IntoIterator<Item = (String, u64)>) -> Grid {
        let mut known: Vec<(String, u64)> = vec![];
        let class_of = layers
            .into_iter()
            .map(|layer| {
                known.iter().position(|class| *class == layer).unwrap_or_else(|| {
                    known.push(layer);
                    known.len() - 1
                })
            })
            .collect();
        Grid { experts, used, class_of, class_bytes: known.iter().map(|(_, bytes)| *bytes).collect() }
    }

    /// Number of mixture layers.
    pub fn layers(&self) -> usize {
        self.class_of.len()
    }

    /// Experts of all layers.
    pub fn entries(&self) -> usize {
        self.layers() * self.experts
    }

    /// Number of an expert among all of them.
    pub fn entry(&self, layer: usize, expert: usize) -> usize {
        layer * self.experts + expert
    }

    /// Bytes of one expert of this layer.
    pub fn bytes(&self, layer: usize) -> u64 {
        self.class_bytes[self.class_of[layer]]
    }

    /// Bytes of all experts.
    pub fn total_bytes(&self) -> u64 {
        (0..self.layers()).map(|layer| self.bytes(layer) * self.experts as u64).sum()
    }

    /// Layers of a class.
    pub fn class_layers(&self, class: usize) -> impl Iterator<Item = usize> {
        (0..self.layers()).filter(move |layer| self.class_of[*layer] == class)
    }
}
