// What the cache writers share: the bindings, the head's values, and rounding to f16.

@group(0) @binding(6) var<storage, read_write> keys: array<u32>;
@group(0) @binding(7) var<storage, read_write> values: array<u32>;

const LANES: u32 = 64u;

var<workgroup> turned: array<f32, 256>; // the head of q or k, (HEAD_DIM)
var<workgroup> stored: array<f32, 256>; // the head of v, (HEAD_DIM)

// To the nearest f16, ties to even: pack2x16float may round towards zero, and the CPU does not.
fn f16_bits(v: f32) -> u32 {
    let bits = bitcast<u32>(v);
    let sign = (bits >> 16u) & 0x8000u;
    let a = bits & 0x7fffffffu;
    if a >= 0x47800000u {
        return sign | select(0x7c00u, 0x7e00u, a > 0x7f800000u);
    }
    if a < 0x38800000u {
        // Adding 0.5 shifts the subnormal's bits to the end of the mantissa, rounded.
        return sign | (bitcast<u32>(bitcast<f32>(a) + 0.5) - 0x3f000000u);
    }
    return sign | ((a + 0xc8000fffu + ((a >> 13u) & 1u)) >> 13u);
}

fn f16_pair(a: f32, b: f32) -> u32 {
    return f16_bits(a) | (f16_bits(b) << 16u);
}
