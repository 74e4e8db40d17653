// Q5_0: per row the nibbles of all blocks (16 B each), then their fifth bits (4 B), then their scales (f16).
// Weight = d * (q - 16).

const SCALED: bool = true;
const OFFSET: bool = true;
const SIGNED: bool = false;

fn unit_quads(u: u32) -> vec2<u32> { return vec2<u32>(u * 8u, u * 8u + 4u); }

fn load_packed(row: u32, u: u32, units: u32) -> Packed {
    let q = quad(row + u);
    let high = word_at(row + units, u);
    let d = f16_at(row + units + (units + 3u) / 4u, u);
    let lo = low_nibbles(q) | fifth_bits(high);
    let hi = high_nibbles(q) | fifth_bits(high >> 16u);
    return Packed(lo, hi, vec2<f32>(d), vec2<f32>(-16.0 * d));
}
