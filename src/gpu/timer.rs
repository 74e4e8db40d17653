//! Time spent in each kernel, by timestamps around every dispatch.
//!
//! Each dispatch gets a pass of its own, since that is where all adapters with timestamps can write them; a timed run is
//! waited for. So its sum is a little more than what an untimed run takes, and its shares are what counts.

use std::collections::HashMap;
use std::sync::mpsc::channel;

use super::device::Device;
use super::error::GpuError;
use super::kernels::Kernel;

/// Dispatches of one submission that are timed, at most: a query set holds 4096 timestamps.
const MOST: u32 = 2048;

/// What a kernel took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Times {
    /// The kernel and the format it decodes.
    pub kernel: String,
    pub dispatches: u64,
    pub seconds: f64,
}

/// Timestamps of one submission, and the sums of all.
pub(super) struct Timer {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    host: wgpu::Buffer,
    kernels: Vec<Kernel>, // of the submission's dispatches
    seconds_a_tick: f64,
    sums: HashMap<Kernel, (u64, f64)>,
}

impl Timer {
    /// A timer; `None` where the device has no timestamps.
    pub(super) fn new(device: &Device) -> Option<Timer> {
        if !device.has_timestamps() {
            return None;
        }
        let wgpu = device.wgpu();
        let buffer = |label, usage| {
            wgpu.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: u64::from(MOST) * 16,
                usage,
                mapped_at_creation: false,
            })
        };
        use wgpu::BufferUsages as U;
        Some(Timer {
            queries: wgpu.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2 * MOST,
            }),
            resolved: buffer("timestamps", U::QUERY_RESOLVE | U::COPY_SRC),
            host: buffer("timestamps on the host", U::MAP_READ | U::COPY_DST),
            kernels: vec![],
            seconds_a_tick: f64::from(device.queue().get_timestamp_period()) * 1e-9,
            sums: HashMap::new(),
        })
    }

    /// The timestamps of the next dispatch; `None` when a submission has too many.
    pub(super) fn next(&mut self, kernel: Kernel) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        let at = self.kernels.len() as u32;
        if at >= MOST {
            return None;
        }
        self.kernels.push(kernel);
        Some(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(2 * at),
            end_of_pass_write_index: Some(2 * at + 1),
        })
    }

    /// Copies the submission's timestamps to the host.
    pub(super) fn resolve(&mut self, encoder: &mut wgpu::CommandEncoder) {
        let count = 2 * self.kernels.len() as u32;
        if count > 0 {
            encoder.resolve_query_set(&self.queries, 0..count, &self.resolved, 0);
            encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.host, 0, u64::from(count) * 8);
        }
    }

    /// Waits for the submission and adds its times up.
    pub(super) fn collect(&mut self, device: &Device, submission: wgpu::SubmissionIndex) -> Result<(), GpuError> {
        if self.kernels.is_empty() {
            return Ok(());
        }
        let (send, mapped) = channel();
        self.host.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver below outlives the map.
            let _ = send.send(result);
        });
        device.wait_for(submission)?;
        let lost = |e: &dyn std::fmt::Display| device.lost(e.to_string());
        mapped.recv().map_err(|e| lost(&e))?.map_err(|e| lost(&e))?;
        let bytes = self.host.get_mapped_range(..).map_err(|e| lost(&e))?;
        let ticks: &[u64] = bytemuck::cast_slice(&bytes);
        for (kernel, pair) in self.kernels.drain(..).zip(ticks.chunks_exact(2)) {
            let (dispatches, seconds) = self.sums.entry(kernel).or_default();
            *dispatches += 1;
            *seconds += pair[1].saturating_sub(pair[0]) as f64 * self.seconds_a_tick;
        }
        drop(bytes);
        self.host.unmap();
        Ok(())
    }

    /// The sums, the longest first.
    pub(super) fn times(&self) -> Vec<Times> {
        let named = |(kernel, &(dispatches, seconds)): (&Kernel, &(u64, f64))| Times {
            kernel: kernel.name(),
            dispatches,
            seconds,
        };
        let mut times: Vec<Times> = self.sums.iter().map(named).collect();
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        times
    }
}
