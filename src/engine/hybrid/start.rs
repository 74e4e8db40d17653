//! The pager of a loaded model, with what is known of its experts.

use std::sync::Arc;

use super::{ExpertChoice, ExpertOptions, Hybrid, SlotPlan};
use crate::engine::heat::Known;
use crate::engine::{EngineConfig, EngineError};
use crate::experts::rates::Rates;
use crate::experts::tier::Tier;
use crate::gpu::Gpu;
use crate::weights::Weights;

/// The pager of an outline's slots.
pub fn page_experts(
    slots: &SlotPlan,
    weights: &Weights,
    gpus: &mut [Gpu],
    tier: Option<&Arc<Tier>>,
    known: Option<Known>,
    config: &EngineConfig,
) -> Result<Hybrid, EngineError> {
    let guard = config.experts.guard && config.experts.choice != ExpertChoice::Always;
    let options = ExpertOptions { guard, notice: config.notice, ..config.experts.clone() };
    let Known { saved, start } = known.unwrap_or_default();
    let mut hybrid = Hybrid::new(slots, weights, gpus, tier, &options, saved, start.as_ref())?;
    if let (Some(_), Some(home)) = (tier, &config.rates)
        && let Some(rate) = Rates::load(home, config.threads()).and_then(|rates| rates.disk(weights.gguf().path()))
    {
        hybrid.reads_at(rate);
    }
    Ok(hybrid)
}
