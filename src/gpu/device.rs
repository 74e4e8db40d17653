//! Adapters: what there is, what rynd would use, why not the rest; and an open device with its limits and counters.
//!
//! Only portable features are asked for (immediates; subgroups and mappable primary buffers where they exist), and the
//! adapter's own limits are taken as they are. Memory is counted here, since no API says how much is free. Errors that
//! the driver reports late are kept and returned by the next call instead of a panic.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::kernels::Team;
use super::pipelines::Pipelines;
use crate::backend::BackendError;

/// Why a GPU can not be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("no GPU {index}; `rynd devices` lists {count} adapter(s), counted from 0")]
    NoSuchAdapter { index: usize, count: usize },
    #[error("no usable GPU: {why}; run with --gpu off, or see `rynd devices`")]
    NoAdapter { why: String },
    #[error("{adapter} can not be used: {why}; run with --gpu off or choose another with --gpu")]
    Unusable { adapter: String, why: String },
    #[error("{adapter} refused {bytes} bytes for {what}; lower --gpu-layers, -c or --gpu-memory")]
    OutOfMemory { adapter: String, what: String, bytes: u64 },
    #[error("{what} needs {bytes} bytes, but --gpu-memory leaves {left}; raise it, or lower --gpu-layers or -c")]
    OverBudget { what: String, bytes: u64, left: u64 },
    #[error("{what} needs {bytes} bytes in one piece, and {adapter} binds at most {limit}; {advice}")]
    TooLarge { adapter: String, what: String, bytes: u64, limit: u64, advice: &'static str },
    #[error("shaders/{file}:{line}: {message}; this is a fault of rynd or of the driver, please report it")]
    Shader { file: &'static str, line: u32, message: String },
    #[error("the GPU can not run {what}: {why}; leave it on the CPU")]
    Unsupported { what: String, why: String },
    #[error("{adapter} was lost or failed: {message}; restart, and if it happens again use --gpu off")]
    Lost { adapter: String, message: String },
}

impl From<GpuError> for BackendError {
    fn from(e: GpuError) -> BackendError {
        match e {
            GpuError::Lost { .. } => BackendError::Lost(e.to_string()),
            e => BackendError::Device(e.to_string()),
        }
    }
}

/// What is counted of one device: the evidence that a token is one submit, and reads each weight once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub submits: u64,
    pub passes: u64,
    pub dispatches: u64,
    pub read_backs: u64,
    pub read_back_bytes: u64,
    /// Written by the host: tokens, page tables, rotary angles, values of other sides.
    pub written_bytes: u64,
    /// Weight bytes that the dispatches read, in GPU layout.
    pub weight_bytes: u64,
}

/// An adapter as `rynd devices` shows it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct AdapterReport {
    pub index: usize,
    pub name: String,
    /// `Vulkan`, `Metal` or `Dx12`.
    pub api: String,
    /// `discrete`, `integrated`, `software`, `virtual` or `other`.
    pub kind: &'static str,
    pub driver: String,
    pub subgroups: Option<[u32; 2]>, // least and most lanes
    pub unified_memory: bool,
    pub max_binding_bytes: u64,
    pub max_buffer_bytes: u64,
    /// Memory of its own, or that it shares with the CPU; `None` where the driver does not say.
    pub memory_bytes: Option<u64>,
    /// Optional features that rynd makes use of, by name, and whether it has them.
    pub features: Vec<(&'static str, bool)>,
    /// Why it can not be used at all.
    pub refused: Option<String>,
    /// Why `auto` leaves it alone although it could be used.
    pub not_by_itself: Option<String>,
}

impl AdapterReport {
    /// Bytes of a matrix that are bound at once, at most.
    pub fn bank_bytes(&self) -> u64 {
        self.max_binding_bytes.min(self.max_buffer_bytes).min(i32::MAX as u64)
    }
}

/// All adapters of the machine.
pub struct Devices {
    adapters: Vec<(wgpu::Adapter, AdapterReport)>,
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
}

/// Bytes of one binding that every adapter we support has.
const LEAST_BINDING_BYTES: u64 = 128 << 20;

impl Devices {
    /// Looks for adapters: Vulkan and Metal first, then those that only DirectX 12 knows.
    pub fn list() -> Devices {
        let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
        descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        descriptor.flags = wgpu::InstanceFlags::empty();
        let instance = wgpu::Instance::new(descriptor);
        let mut found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        found.sort_by_key(|adapter| {
            let info = adapter.get_info();
            (info.backend == wgpu::Backend::Dx12, rank(info.device_type))
        });
        let mut adapters: Vec<(wgpu::Adapter, AdapterReport)> = vec![];
        for adapter in found {
            let info = adapter.get_info();
            let is_twin = |other: &wgpu::AdapterInfo| {
                (other.vendor, other.device) == (info.vendor, info.device) && other.backend != info.backend
            };
            if info.vendor != 0 && adapters.iter().any(|(other, _)| is_twin(&other.get_info())) {
                continue;
            }
            for _ in 0..copies() {
                let report = report(adapters.len(), &adapter);
                adapters.push((adapter.clone(), report));
            }
        }
        Devices { adapters }
    }

    /// What is known of an adapter.
    pub fn report(&self, index: usize) -> Result<&AdapterReport, GpuError> {
        let count = self.adapters.len();
        let (_, report) = self.adapters.get(index).ok_or(GpuError::NoSuchAdapter { index, count })?;
        match &report.refused {
            Some(why) => Err(GpuError::Unusable { adapter: report.name.clone(), why: why.clone() }),
            None => Ok(report),
        }
    }

    /// Every adapter, in the order of its index.
    pub fn reports(&self) -> impl Iterator<Item = &AdapterReport> {
        self.adapters.iter().map(|(_, report)| report)
    }

    /// Adapters that `auto` uses: hardware that meets the requirements.
    pub fn automatic(&self) -> Result<Vec<usize>, GpuError> {
        let usable: Vec<usize> = self
            .reports()
            .filter(|report| report.refused.is_none() && report.not_by_itself.is_none())
            .map(|report| report.index)
            .collect();
        if usable.is_empty() {
            let reasons: Vec<String> = self
                .reports()
                .filter_map(|r| Some(format!("{} {}", r.name, r.refused.as_ref().or(r.not_by_itself.as_ref())?)))
                .collect();
            let why = if reasons.is_empty() { "no adapter was found".to_owned() } else { reasons.join("; ") };
            return Err(GpuError::NoAdapter { why });
        }
        Ok(usable)
    }

    /// Opens an adapter. Several devices may be open on one.
    pub fn open(&self, index: usize, memory: Option<u64>, handicap: Handicap) -> Result<Device, GpuError> {
        let report = self.report(index)?;
        Device::open(&self.adapters[index].0, report.clone(), memory, handicap)
    }
}

/// Keeps Mesa's layer that sorts devices by the display out of a process that has no display: it prints errors of its
/// own. For the start of `main`, before any other thread runs.
pub fn quiet_drivers() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: the process has one thread, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// How often each adapter is listed: RYND_GPU_COPIES stands in for a machine with several GPUs.
fn copies() -> usize {
    std::env::var("RYND_GPU_COPIES").ok().and_then(|n| n.parse().ok()).unwrap_or(1).clamp(1, 8)
}

fn rank(kind: wgpu::DeviceType) -> u8 {
    match kind {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

fn report(index: usize, adapter: &wgpu::Adapter) -> AdapterReport {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let lacks = [
        (features.contains(wgpu::Features::IMMEDIATES) && limits.max_immediate_size >= 128, "has no immediates"),
        (limits.max_storage_buffers_per_shader_stage >= 8, "binds fewer than 8 buffers"),
        (limits.max_compute_workgroup_storage_size >= 32 << 10, "has less than 32 KiB of workgroup memory"),
        (limits.max_compute_invocations_per_workgroup >= 256, "has workgroups of fewer than 256 invocations"),
        (limits.max_storage_buffer_binding_size >= LEAST_BINDING_BYTES, "binds less than 128 MiB"),
    ];
    let missing: Vec<&str> = lacks.iter().filter(|(has, _)| !has).map(|(_, what)| *what).collect();
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "software",
        wgpu::DeviceType::Other => "other",
    };
    let software = info.device_type == wgpu::DeviceType::Cpu;
    AdapterReport {
        index,
        api: format!("{:?}", info.backend),
        kind,
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        subgroups: features
            .contains(wgpu::Features::SUBGROUP)
            .then_some([info.subgroup_min_size, info.subgroup_max_size]),
        unified_memory: features.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS)
            && matches!(info.device_type, wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Cpu),
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        memory_bytes: memory_bytes(adapter),
        features: [
            ("subgroups", wgpu::Features::SUBGROUP),
            ("mappable memory", wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            ("timestamps", wgpu::Features::TIMESTAMP_QUERY),
        ]
        .map(|(name, feature)| (name, features.contains(feature)))
        .to_vec(),
        refused: (!missing.is_empty()).then(|| missing.join(", ")),
        not_by_itself: (software && std::env::var_os("RYND_GPU_SOFTWARE").is_none())
            .then(|| "is a software renderer, slower than rynd's own CPU path".to_owned()),
        name: info.name,
    }
}

/// Bytes of the largest heap that is local to the device. Only Vulkan is asked: wgpu has no question of its own.
fn memory_bytes(adapter: &wgpu::Adapter) -> Option<u64> {
    /// VK_MEMORY_HEAP_DEVICE_LOCAL_BIT.
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the handles are those of the adapter, which outlives them here, and the query only reads.
    let properties = unsafe {
        let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = vulkan.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(vulkan.raw_physical_device())
    };
    let heaps = properties.memory_heaps.iter().take(properties.memory_heap_count as usize);
    heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
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
    timestamps: bool,
    budget: Option<u64>,
    allocated: AtomicU64,
    failure: Arc<Mutex<Option<String>>>,
    pipelines: Mutex<Pipelines>,
}

impl Device {
    fn open(
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
            timestamps: !timestamps.is_empty(),
            budget: memory,
            allocated: AtomicU64::new(0),
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

    /// Makes the device fail from now on, as a crashed driver does.
    pub fn lose(&self) {
        let message = "it was given up on request".to_owned();
        self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
        self.0.device.destroy();
    }

    pub(super) fn checks_bounds(&self) -> bool {
        self.0.bounds_checks
    }

    /// Bytes of one binding, at most.
    pub(super) fn binding_bytes(&self) -> u64 {
        self.0.binding_bytes
    }

    /// Bytes of all buffers.
    pub fn allocated_bytes(&self) -> u64 {
        self.0.allocated.load(Ordering::Relaxed)
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
        let scope = self.0.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.0.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("values on the host"),
            size: bytes.next_multiple_of(16).max(16),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        if pollster::block_on(scope.pop()).is_some() {
            let what = "reading values back".to_owned();
            return Err(GpuError::OutOfMemory { adapter: self.0.report.name.clone(), what, bytes });
        }
        self.check()?;
        Ok(buffer)
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
        if let Some(budget) = self.0.budget {
            let left = budget.saturating_sub(self.allocated_bytes());
            if bytes > left {
                return Err(GpuError::OverBudget { what: what.to_owned(), bytes, left });
            }
        }
        let scope = self.0.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.0.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size: bytes,
            usage,
            mapped_at_creation: mapped,
        });
        if pollster::block_on(scope.pop()).is_some() {
            let (adapter, what) = (self.0.report.name.clone(), what.to_owned());
            return Err(GpuError::OutOfMemory { adapter, what, bytes });
        }
        self.check()?;
        self.0.allocated.fetch_add(bytes, Ordering::Relaxed);
        Ok(buffer)
    }

    /// A buffer that will not be used again no longer counts.
    pub(super) fn forget(&self, buffer: &wgpu::Buffer) {
        self.0.allocated.fetch_sub(buffer.size(), Ordering::Relaxed);
    }

    /// A buffer that kernels bind; refused when it is larger than one binding may be.
    pub(super) fn storage(&self, what: &str, bytes: u64, advice: &'static str) -> Result<wgpu::Buffer, GpuError> {
        if bytes > self.0.binding_bytes {
            return Err(GpuError::TooLarge {
                adapter: self.0.report.name.clone(),
                what: what.to_owned(),
                bytes,
                limit: self.0.binding_bytes,
                advice,
            });
        }
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
