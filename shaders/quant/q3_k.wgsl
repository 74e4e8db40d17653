// Q3_K: per row the low two bits of all blocks (64 B each), their third bits (32 B), then their 16 scales of 6 bits (12 B
// as in the file), then d (f16). Units as in Q2_K. Weight = d * scale * (q - 4).

const SCALED: bool = true;
const OFFSET: bool = true;
const SIGNED: bool = false;

fn unit_quads(u: u32) -> vec2<u32> {
    let lo = (u / 4u) * 32u + (u & 2u) * 8u + (u & 1u) * 4u;
    return vec2<u32>(lo, lo + 8u);
}

// Scale i of the 12 bytes that are words `at..at + 3` from vec4 `from`.
fn q3_scale(begin: u32, at: u32, i: u32) -> f32 {
    let low = (word_at(begin, at + i / 4u % 2u) >> (i % 4u * 8u + i / 8u * 4u)) & 15u;
    let high = (word_at(begin, at + 2u) >> (i % 4u * 8u + i / 4u * 2u)) & 3u;
    return f32(low | (high << 4u)) - 32.0;
}

fn load_packed(row: u32, u: u32, units: u32) -> Packed {
    let blocks = units / 8u;
    let block = u / 8u;
    let t = u % 8u;
    let q = quad(row + block * 4u + t / 4u * 2u + (t & 1u)) >> vec4<u32>((t & 2u) * 2u);
    // Bit g of a byte of third bits belongs to the weights of 32-group g = 2 (t / 2) and the next.
    let third = quad(row + blocks * 4u + block * 2u + (t & 1u)) >> vec4<u32>(t / 2u * 2u);
    let scales = row + blocks * 6u;
    let d = f16_at(scales + (blocks * 3u + 3u) / 4u, block);
    let group = t / 2u * 4u + (t & 1u);
    let scale = d * vec2<f32>(q3_scale(scales, block * 3u, group), q3_scale(scales, block * 3u, group + 2u));
    let lo = (q & vec4<u32>(0x03030303u)) | ((third & vec4<u32>(0x01010101u)) << vec4<u32>(2u));
    let hi = ((q >> vec4<u32>(2u)) & vec4<u32>(0x03030303u)) | ((third & vec4<u32>(0x02020202u)) << vec4<u32>(1u));
    return Packed(lo, hi, scale, -4.0 * scale);
}
