// Writes one head of one position as lib/kv_read_f16.wgsl reads it. Uniform over the workgroup.

fn store(index: u32, head: u32, pos: u32) {
    for (var i = index; i < HEAD_DIM / 2u; i += LANES) {
        let chunk = (head * (HEAD_DIM / 8u) + i / 4u) * PAGE + pos;
        keys[chunk * 4u + i % 4u] = f16_pair(turned[2u * i], turned[2u * i + 1u]);
        values[(head * PAGE + pos) * (HEAD_DIM / 2u) + i] = f16_pair(stored[2u * i], stored[2u * i + 1u]);
    }
}
