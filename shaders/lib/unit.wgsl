// What a decode snippet (quant/*.wgsl) hands to the kernels: a unit of 32 weights of one row, in two halves of 16 that
// share a scale each. One lane decodes a unit from one 16-byte load of quants where the format allows it.
//
// Each snippet defines
//   SCALED, OFFSET     whether `scale` and `offset` mean anything (else they are 1 and 0)
//   unit_quads(u)      where the halves lie in the row, in quads of 4 weights
//   load_unit(row, u, units)  the unit; `row` is the row's first vec4, `units` the number of units in a row
// A weight is q * scale + offset. The kernel defines `quad(at)`, the vec4 number `at` of its weights; gpu/layout.rs
// describes the rows.

struct Unit {
    lo: mat4x4<f32>,
    hi: mat4x4<f32>,
    scale: vec2<f32>,
    offset: vec2<f32>,
}

// The four bytes of a word as numbers.
fn bytes(word: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xU8(word));
}

fn bytes16(words: vec4<u32>) -> mat4x4<f32> {
    return mat4x4<f32>(bytes(words.x), bytes(words.y), bytes(words.z), bytes(words.w));
}

fn low_nibbles(words: vec4<u32>) -> vec4<u32> {
    return words & vec4<u32>(0x0f0f0f0fu);
}

fn high_nibbles(words: vec4<u32>) -> vec4<u32> {
    return (words >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
}

// Number `i` of the f16 values that start at vec4 `at`.
fn f16_at(at: u32, i: u32) -> f32 {
    let pair = unpack2x16float(quad(at + i / 8u)[i / 2u % 4u]);
    return select(pair.x, pair.y, i % 2u == 1u);
}

// Word `i` of those that start at vec4 `at`.
fn word_at(at: u32, i: u32) -> u32 {
    return quad(at + i / 4u)[i % 4u];
}

fn quads_of(m: mat4x4<f32>, x: mat4x4<f32>) -> f32 {
    return dot(m[0], x[0]) + dot(m[1], x[1]) + dot(m[2], x[2]) + dot(m[3], x[3]);
}

// The unit times the activations that belong to it; `sums` are the sums of each half of them.
fn unit_dot(unit: Unit, lo: mat4x4<f32>, hi: mat4x4<f32>, sums: vec2<f32>) -> f32 {
    let parts = vec2<f32>(quads_of(unit.lo, lo), quads_of(unit.hi, hi));
    var v = parts.x + parts.y;
    if SCALED {
        v = dot(unit.scale, parts);
    }
    if OFFSET {
        v += dot(unit.offset, sums);
    }
    return v;
}

// The weights themselves.
fn half_values(q: mat4x4<f32>, scale: f32, offset: f32) -> mat4x4<f32> {
    var v = q;
    if SCALED {
        v *= scale;
    }
    if OFFSET {
        let o = vec4<f32>(offset);
        v += mat4x4<f32>(o, o, o, o);
    }
    return v;
}
