// Writes one head of one position as lib/kv_read_q8_0.wgsl reads it. Uniform over the workgroup.

// Per group of 32 the scale's f16 bits: keys from 0, values from 8.
var<workgroup> scale_bits: array<u32, 16>;

fn quantized(v: f32, inverse: f32) -> u32 {
    let q = v * inverse;
    let rounded = clamp(sign(q) * floor(abs(q) + 0.5), -127.0, 127.0);
    return u32(i32(rounded)) & 255u;
}

fn four(a: vec4<f32>, bits: u32) -> u32 {
    let scale = unpack2x16float(bits).x;
    let inverse = select(0.0, 1.0 / scale, scale > 0.0);
    return quantized(a.x, inverse) | (quantized(a.y, inverse) << 8u) | (quantized(a.z, inverse) << 16u)
        | (quantized(a.w, inverse) << 24u);
}

fn store(index: u32, head: u32, pos: u32) {
    let groups = HEAD_DIM / 32u;
    if index < 2u * groups {
        let group = index % groups;
        var largest = 0.0;
        for (var i = group * 32u; i < group * 32u + 32u; i += 1u) {
            largest = max(largest, abs(select(turned[i], stored[i], index >= groups)));
        }
        scale_bits[group + select(0u, 8u, index >= groups)] = f16_bits(largest / 127.0);
    }
    workgroupBarrier();
    let scale_words = (HEAD_DIM + 63u) / 64u;
    let begin = head * (HEAD_DIM * 16u + scale_words * 64u); // words, of keys and of values
    for (var i = index; i < HEAD_DIM / 4u; i += LANES) {
        let at = i * 4u;
        let k = vec4<f32>(turned[at], turned[at + 1u], turned[at + 2u], turned[at + 3u]);
        let v = vec4<f32>(stored[at], stored[at + 1u], stored[at + 2u], stored[at + 3u]);
        keys[begin + (i / 2u * PAGE + pos) * 2u + i % 2u] = four(k, scale_bits[i / 8u]);
        values[begin + pos * (HEAD_DIM / 4u) + i] = four(v, scale_bits[8u + i / 8u]);
    }
    if index < scale_words {
        let second = 2u * index + 1u < groups;
        let k = scale_bits[2u * index] | select(0u, scale_bits[(2u * index + 1u) % 8u] << 16u, second);
        let v = scale_bits[8u + 2u * index] | select(0u, scale_bits[8u + (2u * index + 1u) % 8u] << 16u, second);
        keys[begin + HEAD_DIM * 16u + index * PAGE + pos] = k;
        values[begin + HEAD_DIM * 16u + pos * scale_words + index] = v;
    }
}
