//! The mixture layers of a plan, numbered: which steps are a router and the experts that it chooses for.
//!
//! A mixture's number is not its layer's: a model may begin with dense layers. Whoever counts experts by layer (the pager,
//! traces, statistics, the RAM tier) counts by this list, and nobody walks the steps for it.

use super::{Experts, Op, Router, Side, Step};

/// A router and its experts.
#[derive(Clone, Copy, Debug)]
pub struct Mixture {
    /// The layer it belongs to.
    pub layer: Option<u32>,
    /// The router's step.
    pub router_at: usize,
    pub router: Router,
    /// The experts' step.
    pub experts_at: usize,
    pub experts: Experts,
    /// Where the experts' step was placed.
    pub side: Side,
}

/// The mixtures among these steps, in order.
pub fn mixtures(steps: &[Step]) -> Vec<Mixture> {
    let router_of = |experts: &Experts, before: &[Step]| {
        before.iter().enumerate().rev().find_map(|(at, step)| {
            let Op::Router(router) = step.op else { return None };
            (router.ids == experts.ids).then_some((at, router))
        })
    };
    steps
        .iter()
        .enumerate()
        .filter_map(|(experts_at, step)| {
            let Op::Experts(experts) = step.op else { return None };
            let (router_at, router) = router_of(&experts, &steps[..experts_at])?;
            Some(Mixture { layer: step.layer, router_at, router, experts_at, experts, side: step.side })
        })
        .collect()
}
