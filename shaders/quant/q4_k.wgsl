// Q4_K as in the file: 144 B = 9 vec4, a header and 8 x 16 B of nibbles. A unit is 16 B: 16 weights of group 2 p and
// 16 of group 2 p + 1.

const SCALED: bool = true;
const OFFSET: bool = true;
const SIGNED: bool = false;

fn unit_quads(u: u32) -> vec2<u32> {
    let lo = (u / 2u) * 16u + (u & 1u) * 4u;
    return vec2<u32>(lo, lo + 8u);
}

fn load_packed(row: u32, u: u32, units: u32) -> Packed {
    let block = row + (u / 8u) * 9u;
    let q = quad(block + 1u + u % 8u);
    let s = k_scales(quad(block), u % 8u / 2u);
    return Packed(low_nibbles(q), high_nibbles(q), s.xy, s.zw);
}
