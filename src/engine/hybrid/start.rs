//! What the pager knows when a model is loaded: the profile that the user names, or what earlier runs left behind.

use std::path::PathBuf;
use std::sync::Arc;

use super::{ExpertChoice, ExpertOptions, Hybrid, SlotPlan};
use crate::engine::{EngineConfig, EngineError, router_key};
use crate::experts::tier::Tier;
use crate::experts::{Grid, Heat, Trace};
use crate::gguf::Gguf;
use crate::gpu::Gpu;
use crate::weights::Weights;

/// The pager of an outline's slots.
pub fn page_experts(
    gguf: &Gguf,
    slots: &SlotPlan,
    weights: &Weights,
    gpus: &mut [Gpu],
    tier: Option<&Arc<Tier>>,
    config: &EngineConfig,
) -> Result<Hybrid, EngineError> {
    let guard = config.experts.guard && config.experts.choice != ExpertChoice::Always;
    let options = ExpertOptions { guard, notice: config.notice, ..config.experts.clone() };
    let key = router_key(gguf, weights.plan());
    let saved = saved(&options, &key, &slots.grid);
    let start = match &options.profile {
        Some(path) => Some(profile(path.clone(), &key, &slots.grid)?),
        None => saved.as_ref().map(|(_, heat)| heat.clone()),
    };
    Ok(Hybrid::new(slots, weights, gpus, tier, &options, saved, start.as_ref())?)
}

/// A profile that the user names must be right.
fn profile(file: PathBuf, key: &str, grid: &Grid) -> Result<Heat, EngineError> {
    let failed = |cause: String| EngineError::Profile { file: file.clone(), cause };
    let bytes = std::fs::read(&file).map_err(|e| failed(e.to_string()))?;
    // A trace is a profile too.
    match bytes.first() {
        Some(b'{') => Heat::parse(&bytes, key, grid),
        _ => Heat::of_trace(&Trace::parse(&bytes).map_err(|e| failed(e.to_string()))?, key, grid),
    }
    .map_err(|e| failed(e.to_string()))
}

/// The sidecar's place and what it holds; one that can not be read is begun anew, which is told.
fn saved(options: &ExpertOptions, key: &str, grid: &Grid) -> Option<(PathBuf, Heat)> {
    let path = options.heat.as_ref()?.join(format!("{key}.json"));
    let fresh = || Heat::new(key, grid);
    let heat = match std::fs::read(&path) {
        Ok(bytes) => Heat::parse(&bytes, key, grid).unwrap_or_else(|e| {
            (options.notice)(&format!("{} is begun anew: {e}", path.display()));
            fresh()
        }),
        Err(_) => fresh(),
    };
    Some((path, heat))
}
