// IQ4_XS: per row the nibbles of all blocks (128 B each), then their headers (8 B): d (f16), the upper two bits of 8
// scales (u16), their low nibbles (4 B). A unit is a group of 32. Weight = d * (scale - 32) * value.

const SCALED: bool = true;
const OFFSET: bool = false;

fn unit_quads(u: u32) -> vec2<u32> { return vec2<u32>(u * 8u, u * 8u + 4u); }

fn load_unit(row: u32, u: u32, units: u32) -> Unit {
    let block = u / 8u;
    let group = u % 8u;
    let q = quad(row + u);
    let pair = quad(row + units + block / 2u);
    let header = select(pair.xy, pair.zw, block % 2u == 1u);
    let low = (header.y >> (group * 4u)) & 15u;
    let high = (header.x >> (16u + group * 2u)) & 3u;
    let d = unpack2x16float(header.x).x * (f32(low | (high << 4u)) - 32.0);
    return Unit(iq4_sixteen(low_nibbles(q)), iq4_sixteen(high_nibbles(q)), vec2<f32>(d), vec2<f32>(0.0));
}
