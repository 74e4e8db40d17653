//! Rows of the host added to a slot: the CPU's share of a mixture of experts.

use bytemuck::NoUninit;

use super::Setup;
use crate::gpu::error::GpuError;
use crate::gpu::kernels::Kernel;
use crate::gpu::pipelines::{Call, Recorder};
use crate::gpu::slots::{padded, values_bytes};
use crate::plan::Slot;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct AddParams {
    n: u32,
    x_stride: u32,
    out_at: u32,
    out_stride: u32,
}

/// `slot (t, n) += from (t, n)`.
pub(in crate::gpu) struct Adder {
    pub from: wgpu::Buffer, // (batch, n), rows padded to vec4s
    call: Call<AddParams>,
}

impl Adder {
    pub(in crate::gpu) fn new(setup: &Setup, slot: Slot) -> Result<Adder, GpuError> {
        let (view, buffer) = setup.slots.of(slot);
        let stride = padded(view.width);
        let from = setup.device.storage("rows of the host", values_bytes(setup.batch * stride), "lower -b")?;
        let params = AddParams {
            n: view.width as u32,
            x_stride: stride as u32,
            out_at: view.at as u32,
            out_stride: view.stride as u32,
        };
        let call = setup.device.call(Kernel::Add, &[], &[&from, buffer], params)?;
        Ok(Adder { from, call })
    }

    pub(in crate::gpu) fn record(&self, recorder: &mut Recorder, tokens: usize) {
        let groups = [(self.call.params.n as usize).div_ceil(256), tokens, 1];
        recorder.dispatch(&self.call, &self.call.params, groups, 0);
    }
}
