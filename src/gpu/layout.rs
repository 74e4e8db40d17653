//! How weights lie in GPU memory: each row as planes of equal block parts, every plane and row a whole number of vec4.
//!
//! A lane wants 16 bytes of quants in one aligned load. GGML's blocks of 18, 22, 34, 110 or 210 bytes are aligned to two,
//! so every load would be words shifted together (funnel loads): 13 loads a unit of 32 weights in place of 4 for Q6_K, 9
//! in place of 3 for Q8_0. Measured on Mesa's software Vulkan, a product of 8960 x 1536, five paired runs: funnel loads
//! take 1.1 to 1.3 times as long for Q6_K and 1.0 to 1.25 times for Q8_0, though the rows are 0.3% and 0% shorter (1260
//! and 1632 bytes against 1264 and 1632). Repacking costs nothing that upload does not cost anyway: bytes pass through
//! the CPU once on their way to staging memory. It adds no bytes but the padding of a plane's end, and a row stays one
//! piece, so banks and expert slots are cut as in the file. Q4_K and Q5_K blocks are whole vec4s with their scales in
//! front: they stay as they are. The CPU never sees this layout.

use rynd_quant::Format;

/// Weights that one lane decodes at a time: `load_unit` in the snippets.
pub const UNIT: usize = 32;
/// Bytes of a vec4<u32>.
pub const QUAD: usize = 16;

/// A part of each block; a row holds it for all its blocks before the next plane begins.
struct Plane {
    offset: usize,
    bytes: usize,
}

const fn plane(offset: usize, bytes: usize) -> Plane {
    Plane { offset, bytes }
}

/// A format's snippet files and planes.
pub struct Layout {
    pub format: Format,
    /// Files of `shaders/` that decode it.
    pub files: &'static [&'static str],
    planes: &'static [Plane],
}

const fn layout(format: Format, files: &'static [&'static str], planes: &'static [Plane]) -> Layout {
    Layout { format, files, planes }
}

const LAYOUTS: [Layout; 15] = [
    layout(Format::F32, &["quant/f32.wgsl"], &[plane(0, 4)]),
    layout(Format::F16, &["quant/f16.wgsl"], &[plane(0, 2)]),
    layout(Format::BF16, &["quant/bf16.wgsl"], &[plane(0, 2)]),
    layout(Format::Q4_0, &["quant/q4_0.wgsl", "lib/packed.wgsl"], &[plane(2, 16), plane(0, 2)]),
    layout(Format::Q4_1, &["quant/q4_1.wgsl", "lib/packed.wgsl"], &[plane(4, 16), plane(0, 4)]),
    layout(
        Format::Q5_0,
        &["quant/q5_0.wgsl", "lib/packed.wgsl", "lib/fifth_bits.wgsl"],
        &[plane(6, 16), plane(2, 4), plane(0, 2)],
    ),
    layout(
        Format::Q5_1,
        &["quant/q5_1.wgsl", "lib/packed.wgsl", "lib/fifth_bits.wgsl"],
        &[plane(8, 16), plane(4, 4), plane(0, 4)],
    ),
    layout(Format::Q8_0, &["quant/q8_0.wgsl", "lib/packed.wgsl"], &[plane(2, 32), plane(0, 2)]),
    layout(Format::Q2_K, &["quant/q2_k.wgsl", "lib/packed.wgsl"], &[plane(16, 64), plane(0, 16), plane(80, 4)]),
    layout(
        Format::Q3_K,
        &["quant/q3_k.wgsl", "lib/packed.wgsl"],
        &[plane(32, 64), plane(0, 32), plane(96, 12), plane(108, 2)],
    ),
    layout(Format::Q4_K, &["quant/q4_k.wgsl", "lib/packed.wgsl", "lib/k_scales.wgsl"], &[plane(0, 144)]),
    layout(Format::Q5_K, &["quant/q5_k.wgsl", "lib/packed.wgsl", "lib/k_scales.wgsl"], &[plane(0, 176)]),
    layout(
        Format::Q6_K,
        &["quant/q6_k.wgsl", "lib/packed.wgsl"],
        &[plane(0, 128), plane(128, 64), plane(192, 16), plane(208, 2)],
    ),
    layout(Format::IQ4_NL, &["quant/iq4_nl.wgsl", "lib/iq4_values.wgsl"], &[plane(2, 16), plane(0, 2)]),
    layout(Format::IQ4_XS, &["quant/iq4_xs.wgsl", "lib/iq4_values.wgsl"], &[plane(8, 128), plane(0, 8)]),
];

impl Layout {
    /// The layout of a format; `None` when the GPU kernels do not decode it.
    pub fn of(format: Format) -> Option<&'static Layout> {
        LAYOUTS.iter().find(|layout| layout.format == format)
    }

    /// Formats that the kernels decode.
    pub fn formats() -> impl Iterator<Item = Format> {
        LAYOUTS.iter().map(|layout| layout.format)
    }

    /// Whether its quants are whole numbers of 8 bits: then the int8 kernels take them.
    pub fn is_packed(&self) -> bool {
        self.files.contains(&"lib/packed.wgsl")
    }

    /// Blocks of a row in GPU memory: plain formats are padded with zeros to whole units.
    fn blocks(&self, k: usize) -> usize {
        let len = self.format.block_len();
        if len == 1 { k.next_multiple_of(UNIT) } else { k / len }
    }

    /// Units of a row of k weights.
    pub fn units(&self, k: usize) -> usize {
        k.div_ceil(UNIT)
    }

    /// Bytes of a row of k weights in GPU memory.
    pub fn row_bytes(&self, k: usize) -> usize {
        let blocks = self.blocks(k);
        self.planes.iter().map(|plane| (plane.bytes * blocks).next_multiple_of(QUAD)).sum()
    }

    /// Lays out one row: `src` as in the file, `dst` of `row_bytes(k)`.
    pub fn pack(&self, k: usize, src: &[u8], dst: &mut [u8]) {
        let block_bytes = self.format.block_bytes();
        let mut dst = dst;
        for plane in self.planes {
            let bytes = plane.bytes * self.blocks(k);
            let (to, rest) = dst.split_at_mut(bytes.next_multiple_of(QUAD));
            dst = rest;
            let filled = if plane.bytes == block_bytes {
                to[..src.len()].copy_from_slice(src);
                src.len()
            } else {
                for (to, block) in to.chunks_exact_mut(plane.bytes).zip(src.chunks_exact(block_bytes)) {
                    to.copy_from_slice(&block[plane.offset..plane.offset + plane.bytes]);
                }
                bytes
            };
            to[filled..].fill(0);
        }
    }
}
