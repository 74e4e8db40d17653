//! Pipelines and prepared calls. A call is a pipeline, a bind group and parameters, all made at load; a run only sets
//! what depends on the number of tokens and replays it. Between runs a call can be given other buffers.
//!
//! Our shaders are trusted: wgpu's loop bounding and division checks are off (they cost up to a hundredfold in inner
//! loops), as are bounds checks, since every index derives from sizes that the plan and the executor checked. An error in
//! a shader is looked up again with naga, so that it names the file and line.

use std::collections::HashMap;

use super::device::{Counters, Device};
use super::error::GpuError;
use super::kernels::{Access, Kernel, Overrides};
use super::shaders::Assembled;
use super::timer::Timer;

/// Bytes of parameters that every adapter has.
const IMMEDIATE_BYTES: u32 = 64;

/// A device's pipelines, by kernel and overrides: made once, however many layers or models use them.
#[derive(Default)]
pub(super) struct Pipelines {
    layouts: HashMap<Vec<bool>, (wgpu::BindGroupLayout, wgpu::PipelineLayout)>,
    modules: HashMap<Kernel, wgpu::ShaderModule>,
    pipelines: HashMap<(Kernel, Overrides), wgpu::ComputePipeline>,
}

/// A dispatch made ready at load. `P` is what the shader calls `Params`.
pub(super) struct Call<P> {
    kernel: Kernel,
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    buffers: Vec<wgpu::Buffer>, // by binding
    pub params: P,
}

/// Records dispatches of one submission into one pass; with a timer, each into a pass of its own.
pub(super) struct Recorder<'a> {
    encoder: &'a mut wgpu::CommandEncoder,
    pass: Option<wgpu::ComputePass<'static>>,
    counters: &'a mut Counters,
    timer: Option<&'a mut Timer>,
}

impl Pipelines {
    /// Number of pipelines made.
    pub(super) fn len(&self) -> usize {
        self.pipelines.len()
    }

    fn pipeline(
        &mut self,
        device: &Device,
        kernel: Kernel,
        overrides: &[(&'static str, u32)],
    ) -> Result<wgpu::ComputePipeline, GpuError> {
        let key = (kernel, overrides.to_vec());
        if let Some(pipeline) = self.pipelines.get(&key) {
            return Ok(pipeline.clone());
        }
        let module = self.module(device, kernel)?;
        let (_, layout) = self.layout(device, kernel.bindings());
        let constants: Vec<(&str, f64)> = overrides.iter().map(|&(name, value)| (name, f64::from(value))).collect();
        let wgpu = device.wgpu();
        let scope = wgpu.push_error_scope(wgpu::ErrorFilter::Validation);
        let pipeline = wgpu.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        if let Some(e) = pollster::block_on(scope.pop()) {
            return Err(GpuError::Shader { file: kernel.files()[0], line: 1, message: format!("{overrides:?}: {e}") });
        }
        device.check()?;
        self.pipelines.insert(key, pipeline.clone());
        Ok(pipeline)
    }

    fn module(&mut self, device: &Device, kernel: Kernel) -> Result<wgpu::ShaderModule, GpuError> {
        if let Some(module) = self.modules.get(&kernel) {
            return Ok(module.clone());
        }
        let module = compile(device, &kernel.assemble())?;
        self.modules.insert(kernel, module.clone());
        Ok(module)
    }

    fn layout(&mut self, device: &Device, bindings: &[Access]) -> (wgpu::BindGroupLayout, wgpu::PipelineLayout) {
        let key: Vec<bool> = bindings.iter().map(|&access| access == Access::Read).collect();
        let device = device.wgpu();
        self.layouts
            .entry(key)
            .or_insert_with_key(|key| {
                let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..)
                    .zip(key)
                    .map(|(binding, &read_only)| wgpu::BindGroupLayoutEntry {
                        binding,
                        visibility: wgpu::ShaderStages::COMPUTE,
                        ty: wgpu::BindingType::Buffer {
                            ty: wgpu::BufferBindingType::Storage { read_only },
                            has_dynamic_offset: false,
                            min_binding_size: None,
                        },
                        count: None,
                    })
                    .collect();
                let group = device
                    .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
                let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                    label: None,
                    bind_group_layouts: &[Some(&group)],
                    immediate_size: IMMEDIATE_BYTES,
                });
                (group, pipeline)
            })
            .clone()
    }
}

/// The module of these files; an error names the file and its line.
fn compile(device: &Device, assembled: &Assembled) -> Result<wgpu::ShaderModule, GpuError> {
    let mut checks = wgpu::ShaderRuntimeChecks::checked();
    checks.force_loop_bounding = false;
    checks.int_div_checks = false;
    checks.bounds_checks = device.checks_bounds();
    let wgpu = device.wgpu();
    let scope = wgpu.push_error_scope(wgpu::ErrorFilter::Validation);
    let source = wgpu::ShaderSource::Wgsl(assembled.text.as_str().into());
    // SAFETY: the shaders are the files of this repository. Their loops end (every bound is a size or a page count
    // that the executor made), they do not divide by zero, and they index only what those sizes cover.
    let module =
        unsafe { wgpu.create_shader_module_trusted(wgpu::ShaderModuleDescriptor { label: None, source }, checks) };
    if let Some(e) = pollster::block_on(scope.pop()) {
        let (line, message) = match wgpu::naga::front::wgsl::parse_str(&assembled.text) {
            Err(e) => (e.location(&assembled.text).map_or(1, |at| at.line_number), e.message().to_owned()),
            Ok(_) => (1, e.to_string()),
        };
        let (file, line) = assembled.locate(line);
        return Err(GpuError::Shader { file, line, message });
    }
    Ok(module)
}

impl Device {
    /// A call of the kernel over these buffers, in the order of its bindings.
    pub(super) fn call<P: bytemuck::NoUninit>(
        &self,
        kernel: Kernel,
        overrides: &[(&'static str, u32)],
        buffers: &[&wgpu::Buffer],
        params: P,
    ) -> Result<Call<P>, GpuError> {
        assert!(size_of::<P>() <= IMMEDIATE_BYTES as usize, "{kernel:?}");
        assert_eq!(buffers.len(), kernel.bindings().len(), "{kernel:?}");
        let mut pipelines = self.pipelines();
        let pipeline = pipelines.pipeline(self, kernel, overrides)?;
        let (layout, _) = pipelines.layout(self, kernel.bindings());
        drop(pipelines);
        let buffers: Vec<wgpu::Buffer> = buffers.iter().map(|&buffer| buffer.clone()).collect();
        let bind_group = self.bind_group(&layout, &buffers)?;
        Ok(Call { kernel, pipeline, bind_group, buffers, params })
    }

    /// The same call with other buffers from binding `first` on.
    pub(super) fn rebind<P>(
        &self,
        call: &mut Call<P>,
        first: usize,
        buffers: &[&wgpu::Buffer],
    ) -> Result<(), GpuError> {
        assert!(first + buffers.len() <= call.buffers.len(), "{:?}", call.kernel);
        call.buffers[first..].iter_mut().zip(buffers).for_each(|(to, &buffer)| *to = buffer.clone());
        let (layout, _) = self.pipelines().layout(self, call.kernel.bindings());
        call.bind_group = self.bind_group(&layout, &call.buffers)?;
        Ok(())
    }

    fn bind_group(
        &self,
        layout: &wgpu::BindGroupLayout,
        buffers: &[wgpu::Buffer],
    ) -> Result<wgpu::BindGroup, GpuError> {
        let entries: Vec<wgpu::BindGroupEntry> = (0..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let group =
            self.wgpu().create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries });
        self.check()?;
        Ok(group)
    }
}

impl<'a> Recorder<'a> {
    pub(super) fn new(
        encoder: &'a mut wgpu::CommandEncoder,
        counters: &'a mut Counters,
        timer: Option<&'a mut Timer>,
    ) -> Recorder<'a> {
        Recorder { encoder, pass: None, counters, timer }
    }

    /// Records one dispatch with these parameters; `weight_bytes` is what it reads of weights.
    pub(super) fn dispatch<P: bytemuck::NoUninit>(
        &mut self,
        call: &Call<P>,
        params: &P,
        groups: [usize; 3],
        weight_bytes: u64,
    ) {
        if groups.contains(&0) {
            return;
        }
        let each_alone = self.timer.is_some();
        if self.pass.is_none() || each_alone {
            let timed = self.timer.as_mut().and_then(|timer| timer.next(call.kernel));
            // The pass before ends here.
            self.pass = None;
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes: timed };
            self.pass = Some(self.encoder.begin_compute_pass(&descriptor).forget_lifetime());
            self.counters.passes += 1;
        }
        let Some(pass) = &mut self.pass else { return };
        pass.set_pipeline(&call.pipeline);
        pass.set_bind_group(0, &call.bind_group, &[]);
        pass.set_immediates(0, bytemuck::bytes_of(params));
        pass.dispatch_workgroups(groups[0] as u32, groups[1] as u32, groups[2] as u32);
        self.counters.dispatches += 1;
        self.counters.weight_bytes += weight_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::super::adapters::Devices;
    use super::super::device::Handicap;
    use super::super::shaders::assemble;
    use super::*;

    #[test]
    fn an_error_in_a_shader_names_its_file_and_line() {
        let devices = Devices::list();
        let Some(report) = devices.reports().find(|report| report.refused.is_none()) else {
            assert!(std::env::var_os("RYND_REQUIRE_GPU").is_none(), "RYND_REQUIRE_GPU is set, and there is no adapter");
            eprintln!("skipped: no adapter");
            return;
        };
        let device = devices.open(report.index, None, Handicap::default()).unwrap();
        for (to, words) in [("return x / (1.0 + exp(-x);", "expected"), ("return missing;", "missing")] {
            let from = "return x / (1.0 + exp(-x));";
            let mut assembled = assemble(["lib/reduce.wgsl", "lib/activation.wgsl"]);
            let own = assemble(["lib/activation.wgsl"]).text;
            let expected = own.lines().position(|line| line.contains(from)).unwrap() as u32 + 1;
            assembled.text = assembled.text.replace(from, to);
            let error = compile(&device, &assembled).unwrap_err();
            let GpuError::Shader { file, line, message } = &error else { panic!("{error}") };
            assert_eq!((*file, *line), ("lib/activation.wgsl", expected), "{error}");
            assert!(message.contains(words), "{error}");
        }
    }
}
