// Q8_0: per row the quants of all blocks (32 B each), then their scales (f16). Weight = d * q.

const SCALED: bool = true;
const OFFSET: bool = false;
const SIGNED: bool = true;

fn unit_quads(u: u32) -> vec2<u32> { return vec2<u32>(u * 8u, u * 8u + 4u); }

fn load_packed(row: u32, u: u32, units: u32) -> Packed {
    let at = row + u * 2u;
    let d = f16_at(row + units * 2u, u);
    return Packed(quad(at), quad(at + 1u), vec2<f32>(d), vec2<f32>(0.0));
}
