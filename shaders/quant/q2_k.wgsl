// Q2_K: per row the quants of all blocks (64 B each), their scales and offsets (16 x two nibbles), then d, dmin
// (2 x f16). 16 B of quants hold 64 weights, 32 apart by two bits each; a unit is half of them.
// Weight = d * scale * q - dmin * offset.

const SCALED: bool = true;
const OFFSET: bool = true;
const SIGNED: bool = false;

// Units 4 h + 2 s + j: half h of the block, bits 4 s.., bytes 16 j.. .
fn unit_quads(u: u32) -> vec2<u32> {
    let lo = (u / 4u) * 32u + (u & 2u) * 8u + (u & 1u) * 4u;
    return vec2<u32>(lo, lo + 8u);
}

fn load_packed(row: u32, u: u32, units: u32) -> Packed {
    let blocks = units / 8u;
    let block = u / 8u;
    let t = u % 8u;
    let q = quad(row + block * 4u + t / 4u * 2u + (t & 1u)) >> vec4<u32>((t & 2u) * 2u);
    // Group 8 h + 4 s + j and the one 2 further on.
    let packed = quad(row + blocks * 4u + block)[t / 2u] >> ((t & 1u) * 8u);
    let d = unpack2x16float(word_at(row + blocks * 5u, block));
    let scale = d.x * vec2<f32>(f32(packed & 15u), f32((packed >> 16u) & 15u));
    let least = d.y * vec2<f32>(f32((packed >> 4u) & 15u), f32((packed >> 20u) & 15u));
    let lo = q & vec4<u32>(0x03030303u);
    let hi = (q >> vec4<u32>(2u)) & vec4<u32>(0x03030303u);
    return Packed(lo, hi, scale, -least);
}
