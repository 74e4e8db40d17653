//! What the routers picked in the last run, for whoever wants to know: traces, statistics, the expert pager's tests.
//!
//! An executor that was given a log copies each router's output there. Without one this costs a branch a layer.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::plan::{Op, Plan, WeightId};

/// The picks of one run.
#[derive(Debug)]
pub struct PickLog {
    ordinals: HashMap<WeightId, usize>, // router -> mixture layer
    layers: Mutex<Vec<Vec<f32>>>,       // by mixture layer: (t, 2 * used), as `Op::Router` describes
}

impl PickLog {
    /// An empty log for the routers of a plan.
    pub fn new(plan: &Plan) -> PickLog {
        let routers = plan.steps.iter().filter_map(|step| match step.op {
            Op::Router { weight, .. } => Some(weight),
            _ => None,
        });
        let ordinals: HashMap<WeightId, usize> = routers.enumerate().map(|(i, router)| (router, i)).collect();
        PickLog { layers: Mutex::new(vec![vec![]; ordinals.len()]), ordinals }
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
