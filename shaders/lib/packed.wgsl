// Formats whose quants are whole numbers of at most 8 bits: their snippets define `load_packed`, four quants to a word,
// and SIGNED, in place of `load_unit`. The int8 kernels multiply the words as they are.

struct Packed {
    lo: vec4<u32>,
    hi: vec4<u32>,
    scale: vec2<f32>,
    offset: vec2<f32>,
}

fn numbers(word: u32) -> vec4<f32> {
    if SIGNED {
        return vec4<f32>(unpack4xI8(word));
    }
    return vec4<f32>(unpack4xU8(word));
}

fn sixteen_numbers(words: vec4<u32>) -> mat4x4<f32> {
    return mat4x4<f32>(numbers(words.x), numbers(words.y), numbers(words.z), numbers(words.w));
}

fn load_unit(row: u32, u: u32, units: u32) -> Unit {
    let packed = load_packed(row, u, units);
    return Unit(sixteen_numbers(packed.lo), sixteen_numbers(packed.hi), packed.scale, packed.offset);
}
