//! The wgpu executor (in the making): shaders and their layouts.

pub mod kernels;
pub mod layout;
pub mod shaders;
