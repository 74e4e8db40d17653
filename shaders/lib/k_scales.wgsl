// The header that Q4_K and Q5_K share: d, dmin (f16), then 8 scales and 8 offsets of 6 bits in 12 bytes.

// Scales of the groups 2 p and 2 p + 1, and their negated offsets.
fn k_scales(header: vec4<u32>, p: u32) -> vec4<f32> {
    let shift = (p & 1u) * 16u;
    let a = header.y >> shift;
    let b = header.z >> shift;
    let c = header.w >> shift;
    var scale = vec2<u32>(a & 63u, (a >> 8u) & 63u);
    var least = vec2<u32>(b & 63u, (b >> 8u) & 63u);
    if p >= 2u {
        scale = vec2<u32>((c & 15u) | ((a >> 2u) & 48u), ((c >> 8u) & 15u) | ((a >> 10u) & 48u));
        least = vec2<u32>(((c >> 4u) & 15u) | ((b >> 2u) & 48u), ((c >> 12u) & 15u) | ((b >> 10u) & 48u));
    }
    let d = unpack2x16float(header.x);
    return vec4<f32>(d.x * vec2<f32>(scale), -d.y * vec2<f32>(least));
}
