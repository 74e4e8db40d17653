// Q4_1: per row the nibbles of all blocks (16 B each), then (d, m) of each (2 x f16). Weight = d * q + m.

const SCALED: bool = true;
const OFFSET: bool = true;
const SIGNED: bool = false;

fn unit_quads(u: u32) -> vec2<u32> { return vec2<u32>(u * 8u, u * 8u + 4u); }

fn load_packed(row: u32, u: u32, units: u32) -> Packed {
    let q = quad(row + u);
    let dm = unpack2x16float(word_at(row + units, u));
    return Packed(low_nibbles(q), high_nibbles(q), dm.xx, dm.yy);
}
