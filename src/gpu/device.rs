//! An open device: its limits, its memory as rynd counts it, and the errors that its driver reports late.
//!
//! Only portable features are asked for (immediates; subgroups, mappable primary buffers and timestamps where they
//! exist), and the adapter's own limits are taken as they are. Memory is counted here, since no API says how much is
//! free. Late errors are kept and returned by the next call instead of a panic.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::adapters::AdapterReport;
use super::error::GpuError;
use super::kernels::Team;
use super::pipelines::Pipelines;

/// What is counted of one device: the evidence that a token is one submit, and reads each weight once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub submits: u64,
    pub passes: u64,
    pub dispatches: u64,
    /// Times that the host waited for values: those of one submission come at once.
    pub read_backs: u64,
    pub read_back_bytes: u64,
    /// Written by the host: tokens, page tables, rotary angles, values of other sides.
    pub written_bytes: u64,
    /// Weight bytes that the dispatches read, in GPU layout.
    pub weight_bytes: u64,
    /// Experts that passed through in waves, and their bytes in GPU layout.
    pub streamed: u64,
    pub streamed_bytes: u64,
}

/// Tests and measurements take away what an adapter has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handicap {
    /// Workgroup memory in place of subgroups.
    pub no_subgroups: bool,
    /// Staging buffers although memory is unified.
    pub staging: bool,
    /// Bytes of one binding, at most.
    pub binding_bytes: Option<u64>,
    /// Shaders check every index.
    pub bounds_checks: bool,
    /// Whether activations may be rounded to int8, whatever the adapter; `None` leaves it to what gains on it.
    pub int8: Option<bool>,
}

/// Adapters with integer dot products in hardware, by vendor: Apple's take four multiplications for one.
fn has_fast_int8(info: &wgpu::AdapterInfo) -> bool {
    const NVIDIA: u32 = 0x10de;
    const AMD: u32 = 0x1002;
    const INTEL: u32 = 0x8086;
    info.device_type != wgpu::DeviceType::Cpu && [NVIDIA, AMD, INTEL].contains(&info.vendor)
}

/// An open device. Clones share it.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    report: AdapterReport,
    team: Team,
    staging: bool,
    binding_bytes: u64,
    bounds_checks: bool,
    int8: bool,
    timestamps: bool,
    budget: Option<u64>,
    allocated: AtomicU64,
    peak: AtomicU64,
    allocations: AtomicU64,
    /// Of the buffers that are asked for next, those that tests have refused.
    refused: Mutex<Range<u64>>,
    failure: Arc<Mutex<Option<String>>>,
    pipelines: Mutex<Pipelines>,
}

impl Device {
    /// Opens an adapter.
    pub(super) fn open(
        adapter: &wgpu::Adapter,
        report: AdapterReport,
        memory: Option<u64>,
        handicap: Handicap,
    ) -> Result<Device, GpuError> {
        let mut wanted = wgpu::Features::IMMEDIATES;
        let subgroups = report.subgroups.is_some() && !handicap.no_subgroups;
        if subgroups {
            wanted |= wgpu::Features::SUBGROUP;
        }
        let staging = !report.unified_memory || handicap.staging;
        if !staging {
            wanted |= wgpu::Features::MAPPABLE_PRIMARY_BUFFERS;
        }
        let timestamps = adapter.features() & wgpu::Features::TIMESTAMP_QUERY;
        wanted |= timestamps;
        let limits = adapter.limits();
        let largest = report.bank_bytes();
        let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: None,
            required_features: wanted,
            required_limits: limits,
            experimental_features: wgpu::ExperimentalFeatures::disabled(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            trace: wgpu::Trace::Off,
        }))
        .map_err(|e| GpuError::Unusable { adapter: report.name.clone(), why: e.to_string() })?;
        let failure = Arc::new(Mutex::new(None));
        let note = |failure: &Arc<Mutex<Option<String>>>| {
            let failure = Arc::clone(failure);
            move |message: String| {
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
            }
        };
        let (late, lost) = (note(&failure), note(&failure));
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| late(e.to_string())));
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                lost(message);
            }
        });
        Ok(Device(Arc::new(Inner {
            device,
            queue,
            team: if subgroups { Team::Subgroup } else { Team::Workgroup },
            staging,
            binding_bytes: handicap.binding_bytes.map_or(largest, |bytes| bytes.min(largest)),
            bounds_checks: handicap.bounds_checks,
            int8: handicap.int8.unwrap_or_else(|| has_fast_int8(&adapter.get_info())),
            timestamps: !timestamps.is_empty(),
            budget: memory,
            allocated: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            allocations: AtomicU64::new(0),
            refused: Mutex::default(),
            failure,
            pipelines: Mutex::default(),
            report,
        })))
    }

    pub(super) fn wgpu(&self) -> &wgpu::Device {
        &self.0.device
    }

    pub(super) fn queue(&self) -> &wgpu::Queue {
        &self.0.queue
    }

    /// The adapter it was opened on.
    pub fn report(&self) -> &AdapterReport {
        &self.0.report
    }

    pub(super) fn pipelines(&self) -> MutexGuard<'_, Pipelines> {
        self.0.pipelines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn team(&self) -> Team {
        self.0.team
    }

    /// Whether weights go through staging buffers; else they are written where they stay.
    pub(super) fn stages(&self) -> bool {
        self.0.staging
    }

    pub(super) fn has_timestamps(&self) -> bool {
        self.0.timestamps
    }

    /// Counts these bytes as taken from now on, as if the machine had less memory.
    pub fn take_away(&self, bytes: u64) {
        self.0.allocated.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Refuses these of the buffers that are asked for from now on, as a driver does that has no memory for them.
    pub fn refuse(&self, buffers: Range<u64>) {
        *self.0.refused.lock().unwrap_or_else(PoisonError::into_inner) = buffers;
    }

    /// Whether the buffer that is asked for now is one of those.
    fn is_refused(&self) -> bool {
        let mut refused = self.0.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let this = refused.contains(&0);
        *refused = refused.start.saturating_sub(1)..refused.end.saturating_sub(1);
        this
    }

    /// Makes the device fail from now on, as a crashed driver does.
    pub fn lose(&self) {
        let message = "it was given up on request".to_owned();
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
        self.0.device.destroy();
    }

    pub(super) fn checks_bounds(&self) -> bool {
        self.0.bounds_checks
    }

    /// Whether few tokens are multiplied with their activations rounded to int8.
    pub(super) fn rounds_to_int8(&self) -> bool {
        self.0.int8
    }

    /// Bytes of one binding, at most.
    pub(super) fn binding_bytes(&self) -> u64 {
        self.0.binding_bytes
    }

    /// Bytes of all buffers.
    pub fn allocated_bytes(&self) -> u64 {
        self.0.allocated.load(Ordering::Relaxed)
    }

    /// The most bytes that all buffers had at once.
    pub fn peak_bytes(&self) -> u64 {
        self.0.peak.load(Ordering::Relaxed)
    }

    /// Buffers made so far, those of the host left out.
    pub fn allocations(&self) -> u64 {
        self.0.allocations.load(Ordering::Relaxed)
    }

    /// Bytes that the budget leaves; `None` when there is no budget.
    pub fn left_bytes(&self) -> Option<u64> {
        self.0.budget.map(|budget| budget.saturating_sub(self.allocated_bytes()))
    }

    /// Rows that a workgroup of a matrix-vector kernel computes: as many as keep its teams busy, more only when there
    /// are rows enough for tens of thousands of workgroups.
    pub(super) fn rows_per_workgroup(&self, rows: usize) -> u32 {
        let teams = match (self.0.team, self.0.report.subgroups) {
            // wgpu says 4 for every Apple GPU, which have 32.
            (Team::Subgroup, Some(_)) if self.0.report.api == "Metal" => 2,
            (Team::Subgroup, Some([least, _])) => (64 / least.max(1)).clamp(1, 8),
            _ => 4,
        };
        let mut per_workgroup = 2 * teams as usize;
        while rows / per_workgroup > 16_384 {
            per_workgroup *= 2;
        }
        per_workgroup as u32
    }

    /// The first error that the driver reported since the device was opened.
    pub(super) fn check(&self) -> Result<(), GpuError> {
        match &*self.0.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(message) => Err(self.lost(message.clone())),
        }
    }

    pub(super) fn lost(&self, message: String) -> GpuError {
        GpuError::Lost { adapter: self.0.report.name.clone(), message }
    }

    /// Memory of the host that values are read back through; no budget is asked.
    pub(super) fn host_buffer(&self, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        self.create("reading values back", bytes.next_multiple_of(16).max(16), usage, false)
    }

    /// Memory of the host that weights pass through, mapped; no budget is asked.
    pub(super) fn staging_buffer(&self, bytes: u64) -> Result<wgpu::Buffer, GpuError> {
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        self.create("staging memory of waves", bytes.next_multiple_of(16).max(16), usage, true)
    }

    fn create(
        &self,
        what: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
        mapped: bool,
    ) -> Result<wgpu::Buffer, GpuError> {
        let scope = self.0.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.0.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size: bytes,
            usage,
            mapped_at_creation: mapped,
        });
        if pollster::block_on(scope.pop()).is_some() {
            return Err(self.out_of_memory(what, bytes));
        }
        self.check()?;
        Ok(buffer)
    }

    fn out_of_memory(&self, what: &str, bytes: u64) -> GpuError {
        GpuError::OutOfMemory { adapter: self.0.report.name.clone(), what: what.to_owned(), bytes }
    }

    /// A buffer within the budget and the device's memory.
    pub(super) fn buffer(
        &self,
        what: &str,
        bytes: u64,
        usage: wgpu::BufferUsages,
        mapped: bool,
    ) -> Result<wgpu::Buffer, GpuError> {
        let bytes = bytes.next_multiple_of(16).max(16);
        let limit = self.0.device.limits().max_buffer_size.min(i32::MAX as u64);
        if bytes > limit {
            return Err(GpuError::TooLarge {
                adapter: self.0.report.name.clone(),
                what: what.to_owned(),
                bytes,
                limit,
                advice: "lower -c or -b",
            });
        }
        if let Some(left) = self.left_bytes()
            && bytes > left
        {
            return Err(GpuError::OverBudget { what: what.to_owned(), bytes, left });
        }
        if self.is_refused() {
            return Err(self.out_of_memory(what, bytes));
        }
        let buffer = self.create(what, bytes, usage, mapped)?;
        let before = self.0.allocated.fetch_add(bytes, Ordering::Relaxed);
        self.0.peak.fetch_max(before + bytes, Ordering::Relaxed);
        self.0.allocations.fetch_add(1, Ordering::Relaxed);
        Ok(buffer)
    }

    /// A buffer that will not be used again no longer counts.
    pub(super) fn forget(&self, buffer: &wgpu::Buffer) {
        self.0.allocated.fetch_sub(buffer.size(), Ordering::Relaxed);
    }

    /// Gives a buffer's memory back when what was submitted is done with it. To bind it again would be an error.
    pub(super) fn destroy(&self, buffer: &wgpu::Buffer) {
        self.forget(buffer);
        buffer.destroy();
    }

    /// Refuses what is larger than one binding may be.
    pub(super) fn check_binding(&self, what: &str, bytes: u64, advice: &'static str) -> Result<(), GpuError> {
        if bytes > self.0.binding_bytes {
            return Err(GpuError::TooLarge {
                adapter: self.0.report.name.clone(),
                what: what.to_owned(),
                bytes,
                limit: self.0.binding_bytes,
                advice,
            });
        }
        Ok(())
    }

    /// A buffer that kernels bind; refused when it is larger than one binding may be.
    pub(super) fn storage(&self, what: &str, bytes: u64, advice: &'static str) -> Result<wgpu::Buffer, GpuError> {
        self.check_binding(what, bytes, advice)?;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        self.buffer(what, bytes, usage, false)
    }

    /// Waits until this submission is done.
    pub(super) fn wait_for(&self, submission: wgpu::SubmissionIndex) -> Result<(), GpuError> {
        let until = wgpu::PollType::Wait { submission_index: Some(submission), timeout: None };
        self.0.device.poll(until).map_err(|e| self.lost(e.to_string()))?;
        self.check()
    }

    /// Waits until everything submitted so far is done.
    pub(super) fn wait(&self) -> Result<(), GpuError> {
        self.0.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| self.lost(e.to_string()))?;
        self.check()
    }
}
