//! Adapters: what there is, what rynd would use, and why not the rest.
//!
//! Every adapter of Vulkan, Metal and DirectX 12 is listed once, hardware first. One that lacks what every kernel needs is
//! refused with its reason; a software renderer is left alone unless it is named.

use super::device::{Device, Handicap};
use super::error::GpuError;

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

    /// What its rates are kept under: a driver that was exchanged is another GPU.
    pub fn rates_key(&self) -> String {
        format!("{}; {}; {}", self.name, self.driver, self.api)
    }
}

/// All adapters of the machine.
pub struct Devices {
    adapters: Vec<(wgpu::Adapter, AdapterReport)>,
}

/// How adapters are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing {
    /// How often each is listed, which stands in for a machine with several GPUs.
    pub copies: usize,
    /// Whether `auto` uses software renderers.
    pub software: bool,
}

impl Listing {
    /// What RYND_GPU_COPIES and RYND_GPU_SOFTWARE say.
    pub fn from_environment() -> Listing {
        let copies = std::env::var("RYND_GPU_COPIES").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
        Listing { copies: usize::clamp(copies, 1, 8), software: std::env::var_os("RYND_GPU_SOFTWARE").is_some() }
    }
}

/// Bytes of one binding that every adapter we support has.
const LEAST_BINDING_BYTES: u64 = 128 << 20;

impl Devices {
    /// The adapters, listed as the environment says.
    pub fn list() -> Devices {
        Devices::list_as(Listing::from_environment())
    }

    /// Looks for adapters: Vulkan and Metal first, then those that only DirectX 12 knows.
    pub fn list_as(listing: Listing) -> Devices {
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
            for _ in 0..listing.copies {
                let report = report(adapters.len(), &adapter, listing.software);
                adapters.push((adapter.clone(), report));
            }
        }
        let has_card = adapters.iter().any(|(_, report)| report.kind == "discrete" && report.refused.is_none());
        for (_, report) in adapters.iter_mut().filter(|(_, report)| has_card && report.kind == "integrated") {
            let why = "shares the CPU's memory bandwidth, and there is a card with its own";
            report.not_by_itself.get_or_insert(why.to_owned());
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
    let has_session = || std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|dir| std::path::Path::new(&dir).is_dir());
    if cfg!(target_os = "linux") && !has_session() {
        // SAFETY: the process has one thread, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
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

fn report(index: usize, adapter: &wgpu::Adapter, software_too: bool) -> AdapterReport {
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
        // A software renderer names a figure of its own; it takes what the machine has.
        memory_bytes: if software { None } else { memory_bytes(adapter) },
        features: [
            ("subgroups", wgpu::Features::SUBGROUP),
            ("mappable memory", wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            ("timestamps", wgpu::Features::TIMESTAMP_QUERY),
        ]
        .map(|(name, feature)| (name, features.contains(feature)))
        .to_vec(),
        refused: (!missing.is_empty()).then(|| missing.join(", ")),
        not_by_itself: (software && !software_too)
            .then(|| "is a software renderer, slower than rynd's own CPU path".to_owned()),
        name: info.name,
    }
}

/// Apple's systems have Metal alone.
#[cfg(target_vendor = "apple")]
fn memory_bytes(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// Bytes of the largest heap that is local to the device. Only Vulkan is asked: wgpu has no question of its own.
#[cfg(not(target_vendor = "apple"))]
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
