//! The id of each wanted row's largest logit: all that a greedy token needs to read back.

use bytemuck::NoUninit;

use super::Setup;
use crate::gpu::error::GpuError;
use crate::gpu::kernels::Kernel;
use crate::gpu::pipelines::{Call, Recorder};
use crate::gpu::slots::values_bytes;
use crate::plan::Slot;

#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
struct ArgmaxParams {
    n: u32,
    x_at: u32,
    x_stride: u32,
    out_at: u32,
}

/// `ids (r) = argmax(logits (r, vocab))`.
pub(in crate::gpu) struct Best {
    pub ids: wgpu::Buffer, // (batch)
    call: Call<ArgmaxParams>,
}

impl Best {
    pub(in crate::gpu) fn new(setup: &Setup, logits: Slot) -> Result<Best, GpuError> {
        let (view, buffer) = setup.slots.of(logits);
        let ids = setup.device.storage("ids of the largest logits", values_bytes(setup.batch), "lower -b")?;
        let params =
            ArgmaxParams { n: view.width as u32, x_at: view.at as u32, x_stride: view.stride as u32, out_at: 0 };
        let call = setup.device.call(Kernel::Argmax, &[], &[buffer, &ids], params)?;
        Ok(Best { ids, call })
    }

    /// For the rows that lie in the logits' buffer, of which the first is row `first` of the run.
    pub(in crate::gpu) fn record(&self, recorder: &mut Recorder, first: usize, rows: usize) {
        let params = ArgmaxParams { out_at: first as u32, ..self.call.params };
        recorder.dispatch(&self.call, &params, [rows, 1, 1], 0);
    }
}
