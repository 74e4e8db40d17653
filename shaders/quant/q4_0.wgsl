// Q4_0: per row the nibbles of all blocks (16 B each), then their scales (f16). Weight = d * (q - 8).

const SCALED: bool = true;
const OFFSET: bool = true;
const SIGNED: bool = false;

fn unit_quads(u: u32) -> vec2<u32> { return vec2<u32>(u * 8u, u * 8u + 4u); }

fn load_packed(row: u32, u: u32, units: u32) -> Packed {
    let q = quad(row + u);
    let d = f16_at(row + units, u);
    return Packed(low_nibbles(q), high_nibbles(q), vec2<f32>(d), vec2<f32>(-8.0 * d));
}
