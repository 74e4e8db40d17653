//! The shader assembler: WGSL files put one after the other, and the way back from a line to its file.
//!
//! There is no preprocessor. What varies is which files are put together (a decode snippet, a way to sum, a cache
//! format) and the `override` constants of a pipeline. WGSL does not care for the order of declarations.

/// All of `shaders/`, by path.
const SOURCES: &[(&str, &str)] = &[
    ("lib/activation.wgsl", include_str!("../../shaders/lib/activation.wgsl")),
    ("lib/activations.wgsl", include_str!("../../shaders/lib/activations.wgsl")),
    ("lib/env.wgsl", include_str!("../../shaders/lib/env.wgsl")),
    ("lib/experts.wgsl", include_str!("../../shaders/lib/experts.wgsl")),
    ("lib/fifth_bits.wgsl", include_str!("../../shaders/lib/fifth_bits.wgsl")),
    ("lib/iq4_values.wgsl", include_str!("../../shaders/lib/iq4_values.wgsl")),
    ("lib/k_scales.wgsl", include_str!("../../shaders/lib/k_scales.wgsl")),
    ("lib/kv_read_f16.wgsl", include_str!("../../shaders/lib/kv_read_f16.wgsl")),
    ("lib/kv_read_f32.wgsl", include_str!("../../shaders/lib/kv_read_f32.wgsl")),
    ("lib/kv_read_q8_0.wgsl", include_str!("../../shaders/lib/kv_read_q8_0.wgsl")),
    ("lib/kv_shape.wgsl", include_str!("../../shaders/lib/kv_shape.wgsl")),
    ("lib/kv_write.wgsl", include_str!("../../shaders/lib/kv_write.wgsl")),
    ("lib/kv_write_f16.wgsl", include_str!("../../shaders/lib/kv_write_f16.wgsl")),
    ("lib/kv_write_f32.wgsl", include_str!("../../shaders/lib/kv_write_f32.wgsl")),
    ("lib/kv_write_q8_0.wgsl", include_str!("../../shaders/lib/kv_write_q8_0.wgsl")),
    ("lib/linear.wgsl", include_str!("../../shaders/lib/linear.wgsl")),
    ("lib/packed.wgsl", include_str!("../../shaders/lib/packed.wgsl")),
    ("lib/reduce.wgsl", include_str!("../../shaders/lib/reduce.wgsl")),
    ("lib/row_pair.wgsl", include_str!("../../shaders/lib/row_pair.wgsl")),
    ("lib/team_subgroup.wgsl", include_str!("../../shaders/lib/team_subgroup.wgsl")),
    ("lib/team_workgroup.wgsl", include_str!("../../shaders/lib/team_workgroup.wgsl")),
    ("lib/tile.wgsl", include_str!("../../shaders/lib/tile.wgsl")),
    ("lib/unit.wgsl", include_str!("../../shaders/lib/unit.wgsl")),
    ("op/add.wgsl", include_str!("../../shaders/op/add.wgsl")),
    ("op/argmax.wgsl", include_str!("../../shaders/op/argmax.wgsl")),
    ("op/attention.wgsl", include_str!("../../shaders/op/attention.wgsl")),
    ("op/attention_merge.wgsl", include_str!("../../shaders/op/attention_merge.wgsl")),
    ("op/embed.wgsl", include_str!("../../shaders/op/embed.wgsl")),
    ("op/experts_down.wgsl", include_str!("../../shaders/op/experts_down.wgsl")),
    ("op/experts_gated.wgsl", include_str!("../../shaders/op/experts_gated.wgsl")),
    ("op/experts_group.wgsl", include_str!("../../shaders/op/experts_group.wgsl")),
    ("op/experts_matmul.wgsl", include_str!("../../shaders/op/experts_matmul.wgsl")),
    ("op/experts_sum.wgsl", include_str!("../../shaders/op/experts_sum.wgsl")),
    ("op/gate.wgsl", include_str!("../../shaders/op/gate.wgsl")),
    ("op/matmul.wgsl", include_str!("../../shaders/op/matmul.wgsl")),
    ("op/matvec.wgsl", include_str!("../../shaders/op/matvec.wgsl")),
    ("op/matvec_int8.wgsl", include_str!("../../shaders/op/matvec_int8.wgsl")),
    ("op/rms_norm.wgsl", include_str!("../../shaders/op/rms_norm.wgsl")),
    ("op/rope_store.wgsl", include_str!("../../shaders/op/rope_store.wgsl")),
    ("op/router.wgsl", include_str!("../../shaders/op/router.wgsl")),
    ("op/take_rows.wgsl", include_str!("../../shaders/op/take_rows.wgsl")),
    ("quant/bf16.wgsl", include_str!("../../shaders/quant/bf16.wgsl")),
    ("quant/f16.wgsl", include_str!("../../shaders/quant/f16.wgsl")),
    ("quant/f32.wgsl", include_str!("../../shaders/quant/f32.wgsl")),
    ("quant/iq4_nl.wgsl", include_str!("../../shaders/quant/iq4_nl.wgsl")),
    ("quant/iq4_xs.wgsl", include_str!("../../shaders/quant/iq4_xs.wgsl")),
    ("quant/q2_k.wgsl", include_str!("../../shaders/quant/q2_k.wgsl")),
    ("quant/q3_k.wgsl", include_str!("../../shaders/quant/q3_k.wgsl")),
    ("quant/q4_0.wgsl", include_str!("../../shaders/quant/q4_0.wgsl")),
    ("quant/q4_1.wgsl", include_str!("../../shaders/quant/q4_1.wgsl")),
    ("quant/q4_k.wgsl", include_str!("../../shaders/quant/q4_k.wgsl")),
    ("quant/q5_0.wgsl", include_str!("../../shaders/quant/q5_0.wgsl")),
    ("quant/q5_1.wgsl", include_str!("../../shaders/quant/q5_1.wgsl")),
    ("quant/q5_k.wgsl", include_str!("../../shaders/quant/q5_k.wgsl")),
    ("quant/q6_k.wgsl", include_str!("../../shaders/quant/q6_k.wgsl")),
    ("quant/q8_0.wgsl", include_str!("../../shaders/quant/q8_0.wgsl")),
];

/// Several files as one WGSL text.
#[derive(Debug)]
pub struct Assembled {
    pub text: String,
    files: Vec<(&'static str, u32)>, // path, lines
}

/// Puts these files of `shaders/` one after the other. Panics for a path that is not there: paths are constants.
pub fn assemble<'a>(paths: impl IntoIterator<Item = &'a str>) -> Assembled {
    let mut assembled = Assembled { text: String::new(), files: vec![] };
    for path in paths {
        let Some((path, source)) = SOURCES.iter().find(|(known, _)| *known == path) else {
            panic!("shaders/{path} is not in SOURCES of src/gpu/shaders.rs");
        };
        assembled.text.push_str(source);
        assembled.files.push((path, source.lines().count() as u32));
    }
    assembled
}

impl Assembled {
    /// The file and its line for a line of the text; lines count from 1.
    pub fn locate(&self, line: u32) -> (&'static str, u32) {
        let mut before = 0;
        for &(path, lines) in &self.files {
            if line <= before + lines {
                return (path, line - before);
            }
            before += lines;
        }
        self.files.last().map_or(("", line), |&(path, lines)| (path, lines))
    }
}

/// Every file of `shaders/`, for the test that looks for files that no kernel uses.
pub fn paths() -> impl Iterator<Item = &'static str> {
    SOURCES.iter().map(|(path, _)| *path)
}
