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
    layers: Mutex<Vec<Picks>>,          // by mixture layer
}

/// What one router picked for the tokens of a run.
#[derive(Clone, Debug, Default)]
pub struct Picks {
    pub ids: Vec<u32>,     // (t, used)
    pub weights: Vec<f32>, // (t, used)
}

impl Picks {
    /// Of one of the run's `t` tokens.
    pub fn of(&self, token: usize, t: usize) -> (&[u32], &[f32]) {
        let used = self.ids.len() / t.max(1);
        let range = token * used..(token + 1) * used;
        (&self.ids[range.clone()], &self.weights[range])
    }
}

impl PickLog {
    /// An empty log for the routers of a plan.
    pub fn new(plan: &Plan) -> PickLog {
        let ordinals = plan.mixtures.iter().zip(0..).map(|(mixture, at)| (mixture.router.weight, at)).collect();
        PickLog { layers: Mutex::new(vec![Picks::default(); plan.mixtures.len()]), ordinals }
    }

    /// Takes a router's output for all tokens of the run.
    pub fn put(&self, router: WeightId, ids: &[u32], weights: &[f32]) {
        if let Some(&layer) = self.ordinals.get(&router) {
            let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            let picks = &mut layers[layer];
            picks.ids.clear();
            picks.ids.extend_from_slice(ids);
            picks.weights.clear();
            picks.weights.extend_from_slice(weights);
        }
    }

    /// Hands out the picks of the run by mixture layer.
    pub fn with<R>(&self, read: impl FnOnce(&[Picks]) -> R) -> R {
        read(&self.layers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
