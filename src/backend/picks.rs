//! What the routers picked in the last run, for whoever wants to know: traces, statistics, the expert pager's tests.
//!
//! An executor that was given a log copies each router's output there. Without one this costs a branch a layer.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::plan::{Plan, WeightId};

/// The picks of one run.
#[derive(Debug)]
pub struct PickLog {
    ordinals: HashMap<WeightId, usize>, // router -> mixture layer
    layers: Mutex<Vec<Vec<f32>>>,       // by mixture layer: (t, 2 * used), as `plan::Router` describes
}

impl PickLog {
    /// An empty log for the routers of a plan.
    pub fn new(plan: &Plan) -> PickLog {
        let ordinals = plan.mixtures.iter().zip(0..).map(|(mixture, at)| (mixture.router.weight, at)).collect();
        PickLog { layers: Mutex::new(vec![vec![]; plan.mixtures.len()]), ordinals }
    }

    /// Takes a router's output for all tokens of the run.
    pub fn put(&self, router: WeightId, picks: &[f32]) {
        if let Some(&layer) = self.ordinals.get(&router) {
            let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            layers[layer].clear();
            layers[layer].extend_from_slice(picks);
        }
    }

    /// Hands out the picks of the run by mixture layer: (t, 2 * used) each.
    pub fn with<R>(&self, read: impl FnOnce(&[Vec<f32>]) -> R) -> R {
        read(&self.layers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
