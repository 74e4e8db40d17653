// The fifth bits of Q5_0 and Q5_1: one word a block, bit j belongs to weight j.

// Bits 0..4 of `bits` into bit 4 of the four bytes of a word.
fn spread(bits: u32) -> u32 {
    return ((bits & 1u) << 4u) | ((bits & 2u) << 11u) | ((bits & 4u) << 18u) | ((bits & 8u) << 25u);
}

// The fifth bits of 16 weights, from the low half of `bits`.
fn fifth_bits(bits: u32) -> vec4<u32> {
    return vec4<u32>(spread(bits), spread(bits >> 4u), spread(bits >> 8u), spread(bits >> 12u));
}
