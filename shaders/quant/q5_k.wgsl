// Q5_K as in the file: 176 B = 11 vec4, a header, 2 x 16 B of fifth bits and 8 x 16 B of nibbles. Units as in Q4_K;
// bit g of a byte of fifth bits belongs to group g.

const SCALED: bool = true;
const OFFSET: bool = true;
const SIGNED: bool = false;

fn unit_quads(u: u32) -> vec2<u32> {
    let lo = (u / 2u) * 16u + (u & 1u) * 4u;
    return vec2<u32>(lo, lo + 8u);
}

fn load_packed(row: u32, u: u32, units: u32) -> Packed {
    let block = row + (u / 8u) * 11u;
    let p = u % 8u / 2u;
    let q = quad(block + 3u + u % 8u);
    let high = quad(block + 1u + (u & 1u)) >> vec4<u32>(2u * p);
    let s = k_scales(quad(block), p);
    let lo = low_nibbles(q) | ((high & vec4<u32>(0x01010101u)) << vec4<u32>(4u));
    let hi = high_nibbles(q) | ((high & vec4<u32>(0x02020202u)) << vec4<u32>(3u));
    return Packed(lo, hi, s.xy, s.zw);
}
