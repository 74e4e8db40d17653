//! Every kernel x format x feature set validates, and translates to SPIR-V, MSL and HLSL. No GPU is needed.

use std::collections::BTreeSet;

use naga::back::{hlsl, msl, pipeline_constants::process_overrides, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};
use rynd::backend::KvFormat;
use rynd::gpu::kernels::{Access, AttentionShape, Kernel, Overrides, Team, tile_overrides};
use rynd::gpu::shaders::{self, assemble};

/// Sizes of heads that a cache of this format may have.
fn heads(kv: KvFormat) -> impl Iterator<Item = usize> {
    let step = if kv == KvFormat::Q8_0 { 32 } else { 8 };
    [8, 32, 64, 80, 96, 128, 256].into_iter().filter(move |d| d % step == 0)
}

/// The sets of overrides that the executor builds a kernel with.
fn override_sets(kernel: Kernel) -> Vec<Overrides> {
    let each = |name: &'static str, values: &[u32]| values.iter().map(|&v| vec![(name, v)]).collect();
    match kernel {
        Kernel::RmsNorm => each("ADD", &[0, 1]),
        Kernel::MatvecInt8(..) => vec![
            vec![("ROWS", 4), ("BLOCKS", 2)],
            vec![("ROWS", 16), ("NORM", 1), ("ADD", 1), ("BLOCKS", 680)],
            vec![("GATE", 2)],
        ],
        Kernel::Matvec(..) => vec![
            vec![("ROWS", 4)],
            vec![("ROWS", 16), ("NORM", 1), ("ADD", 1)],
            vec![("ROWS", 8), ("NORM", 1), ("GATE", 1)],
            vec![("GATE", 2)],
        ],
        Kernel::Gate => each("GATE", &[1, 2]),
        Kernel::ExpertsGated(..) => vec![vec![("GATE", 1), ("ROWS", 4)], vec![("GATE", 2), ("BANKS", 3)]],
        Kernel::ExpertsDown(..) => vec![vec![("ROWS", 4)], vec![("ROWS", 16), ("BANKS", 2)]],
        Kernel::ExpertsMatmul(_) => vec![
            [tile_overrides(1).1.as_slice(), &[("GATE", 0), ("BANKS", 1)]].concat(),
            [tile_overrides(100).1.as_slice(), &[("GATE", 1), ("BANKS", 3)]].concat(),
            [tile_overrides(100).1.as_slice(), &[("GATE", 2), ("BANKS", 2)]].concat(),
        ],
        Kernel::Matmul(_) => [1, 100]
            .into_iter()
            .flat_map(|tokens| [0, 1, 2].map(|gate| [tile_overrides(tokens).1.as_slice(), &[("GATE", gate)]].concat()))
            .collect(),
        Kernel::RopeStore(kv) => {
            heads(kv).map(|d| vec![("HEAD_DIM", d as u32), ("HALVES", d as u32 / 64 % 2)]).collect()
        }
        Kernel::Attention(kv) => heads(kv)
            .flat_map(|d| [AttentionShape::narrow(d, 7), AttentionShape::narrow(d, 1), AttentionShape::wide(d)])
            .map(AttentionShape::overrides)
            .collect(),
        Kernel::AttentionMerge => each("HEAD_DIM", &[64, 128]),
        Kernel::Router => each("NORMALIZE", &[0, 1]),
        Kernel::Embed(_)
        | Kernel::ExpertsGroup
        | Kernel::ExpertsSum
        | Kernel::TakeRows
        | Kernel::Add
        | Kernel::Argmax => {
            vec![vec![]]
        }
    }
}

fn parse(kernel: Kernel) -> Module {
    let assembled = kernel.assemble();
    naga::front::wgsl::parse_str(&assembled.text).unwrap_or_else(|e| {
        let line = e.location(&assembled.text).map_or(0, |at| at.line_number);
        let (file, line) = assembled.locate(line);
        panic!("{kernel:?}: shaders/{file}:{line}: {e}");
    })
}

fn validate(kernel: Kernel, module: &Module) -> ModuleInfo {
    let mut capabilities = Capabilities::IMMEDIATES | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    if kernel.team() == Some(Team::Subgroup) {
        capabilities |= Capabilities::SUBGROUP;
    }
    Validator::new(ValidationFlags::all(), capabilities).validate(module).unwrap_or_else(|e| {
        let assembled = kernel.assemble();
        let at = e.spans().next().map_or((assembled.locate(0), String::new()), |(span, what)| {
            (assembled.locate(span.location(&assembled.text).line_number), what.clone())
        });
        panic!("{kernel:?}: shaders/{}:{}: {} {:?}", at.0.0, at.0.1, at.1, e.into_inner());
    })
}

/// Calls `check` with every kernel, and every set of its overrides already put in.
fn each_variant(mut check: impl FnMut(Kernel, &Module, &ModuleInfo)) {
    for kernel in Kernel::all() {
        let module = parse(kernel);
        let info = validate(kernel, &module);
        for set in override_sets(kernel) {
            let constants = set.iter().map(|&(name, value)| (name.to_owned(), f64::from(value))).collect();
            let (module, info) = process_overrides(&module, &info, Some((ShaderStage::Compute, "main")), &constants)
                .unwrap_or_else(|e| panic!("{kernel:?} with {set:?}: {e}"));
            check(kernel, &module, &info);
        }
    }
}

#[test]
fn every_kernel_translates_to_spir_v() {
    let options = spv::Options { lang_version: (1, 3), ..spv::Options::default() };
    each_variant(|kernel, module, info| {
        let words = spv::write_vec(module, info, &options, None).unwrap_or_else(|e| panic!("{kernel:?}: {e}"));
        assert!(words.len() > 100, "{kernel:?}");
    });
}

#[test]
fn every_kernel_translates_to_msl() {
    let options = msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..msl::Options::default() };
    each_variant(|kernel, module, info| {
        let pipeline = msl::PipelineOptions { entry_point: None, ..msl::PipelineOptions::default() };
        let (text, _) =
            msl::write_string(module, info, &options, &pipeline).unwrap_or_else(|e| panic!("{kernel:?}: {e}"));
        assert!(text.contains("kernel void main_("), "{kernel:?}");
    });
}

#[test]
fn every_kernel_translates_to_hlsl() {
    let options = hlsl::Options {
        shader_model: hlsl::ShaderModel::V6_0,
        fake_missing_bindings: true,
        immediates_target: Some(hlsl::BindTarget::default()),
        ..hlsl::Options::default()
    };
    each_variant(|kernel, module, info| {
        let mut text = String::new();
        let pipeline = hlsl::PipelineOptions::default();
        hlsl::Writer::new(&mut text, &options, &pipeline)
            .write(module, info, None)
            .unwrap_or_else(|e| panic!("{kernel:?}: {e}"));
        assert!(text.contains("numthreads"), "{kernel:?}");
    });
}

#[test]
fn bindings_are_what_the_executor_binds() {
    for kernel in Kernel::all() {
        let module = parse(kernel);
        let mut found: Vec<(u32, Access)> = module
            .global_variables
            .iter()
            .filter_map(|(_, variable)| {
                let naga::AddressSpace::Storage { access } = variable.space else { return None };
                let write = access.contains(naga::StorageAccess::STORE);
                Some((variable.binding.unwrap().binding, if write { Access::Write } else { Access::Read }))
            })
            .collect();
        found.sort_by_key(|(binding, _)| *binding);
        let expected: Vec<(u32, Access)> = (0..).zip(kernel.bindings().iter().copied()).collect();
        assert_eq!(found, expected, "{kernel:?}");
        assert!(found.len() <= 8, "{kernel:?} binds more buffers than every adapter has");
    }
}

#[test]
fn workgroup_memory_and_parameters_stay_within_portable_limits() {
    each_variant(|kernel, module, _| {
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).unwrap();
        let bytes = |space: naga::AddressSpace| -> u32 {
            let of_space = module.global_variables.iter().filter(|(_, variable)| variable.space == space);
            of_space.map(|(_, variable)| layouter[variable.ty].size).sum()
        };
        assert!(bytes(naga::AddressSpace::WorkGroup) <= 32 * 1024, "{kernel:?}");
        assert!(bytes(naga::AddressSpace::Immediate) <= 128, "{kernel:?}");
        let size = module.entry_points[0].workgroup_size;
        assert!(size.iter().product::<u32>() <= 256, "{kernel:?} has {size:?} invocations");
    });
}

#[test]
fn no_shader_file_is_left_unused() {
    let used: BTreeSet<&str> = Kernel::all().into_iter().flat_map(Kernel::files).collect();
    let there: BTreeSet<&str> = shaders::paths().collect();
    assert_eq!(used, there);
    for folder in ["lib", "quant", "op"] {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders").join(folder);
        for entry in std::fs::read_dir(root).unwrap() {
            let path = format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap());
            assert!(there.contains(path.as_str()), "{path} is not in the table of src/gpu/shaders.rs");
        }
    }
}

#[test]
fn an_error_is_traced_to_its_file_and_line() {
    let mut assembled = assemble(["lib/reduce.wgsl", "lib/env.wgsl"]);
    let lines = |path: &str| {
        std::fs::read_to_string(format!("{}/shaders/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap().lines().count()
    };
    let first = lines("lib/reduce.wgsl") as u32;
    assert_eq!(assembled.locate(1), ("lib/reduce.wgsl", 1));
    assert_eq!(assembled.locate(first), ("lib/reduce.wgsl", first));
    assert_eq!(assembled.locate(first + 3), ("lib/env.wgsl", 3));
    // `env` itself is declared by the kernels: without one, its first use is the error.
    assembled.text.push('\n');
    let error = naga::front::wgsl::parse_str(&assembled.text).unwrap_err();
    let (file, line) = assembled.locate(error.location(&assembled.text).unwrap().line_number);
    assert_eq!(file, "lib/env.wgsl");
    let source = std::fs::read_to_string(format!("{}/shaders/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    assert!(source.lines().nth(line as usize - 1).unwrap().contains("env["));
}
