// Q6_K: per row the low nibbles of all blocks (128 B each), their upper two bits (64 B), their 16 scales (i8), then d
// (f16). A unit is 16 B of nibbles: 16 weights in the low halves of its bytes, and those 64 further on in the high.
// Weight = d * scale * (q - 32).

const SCALED: bool = true;
const OFFSET: bool = true;
const SIGNED: bool = false;

fn unit_quads(u: u32) -> vec2<u32> {
    let lo = (u / 4u) * 32u + (u & 3u) * 4u;
    return vec2<u32>(lo, lo + 16u);
}

fn load_packed(row: u32, u: u32, units: u32) -> Packed {
    let blocks = units / 8u;
    let block = u / 8u;
    let t = u % 8u;
    let q = quad(row + u);
    let high = quad(row + units + block * 4u + t / 4u * 2u + (t & 1u)) >> vec4<u32>((t & 2u));
    let scales = quad(row + units + blocks * 4u + block);
    let pair = scales[t / 4u * 2u] >> ((t & 3u) * 8u);
    let pair_hi = scales[t / 4u * 2u + 1u] >> ((t & 3u) * 8u);
    let d = f16_at(row + units + blocks * 5u, block);
    let scale = d * vec2<f32>(f32(unpack4xI8(pair).x), f32(unpack4xI8(pair_hi).x));
    let lo = low_nibbles(q) | ((high & vec4<u32>(0x03030303u)) << vec4<u32>(4u));
    let hi = high_nibbles(q) | (high & vec4<u32>(0x30303030u));
    return Packed(lo, hi, scale, -32.0 * scale);
}
