//! Experts in tiers: what a model needs, what a machine has, and what follows.

pub mod cost;
pub mod disk;
pub mod rates;
pub mod rig;
pub mod shape;
