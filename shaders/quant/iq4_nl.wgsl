// IQ4_NL: per row the nibbles of all blocks (16 B each), then their scales (f16). Weight = d * value.

const SCALED: bool = true;
const OFFSET: bool = false;

fn unit_quads(u: u32) -> vec2<u32> { return vec2<u32>(u * 8u, u * 8u + 4u); }

fn load_unit(row: u32, u: u32, units: u32) -> Unit {
    let q = quad(row + u);
    let d = f16_at(row + units, u);
    return Unit(iq4_sixteen(low_nibbles(q)), iq4_sixteen(high_nibbles(q)), vec2<f32>(d), vec2<f32>(0.0));
}
