//! Experts in tiers: what a model needs, what a machine has, and what follows.

pub mod cost;
pub mod disk;
mod mix;
pub mod rates;
pub mod rig;
pub mod score;
pub mod shape;
pub mod store;
pub mod tier;
