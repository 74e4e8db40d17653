// Writes one head of one position as lib/kv_read_f32.wgsl reads it. Uniform over the workgroup.

fn store(index: u32, head: u32, pos: u32) {
    for (var i = index; i < HEAD_DIM; i += LANES) {
        let chunk = (head * (HEAD_DIM / 8u) + i / 8u) * PAGE + pos;
        keys[chunk * 8u + i % 8u] = bitcast<u32>(turned[i]);
        values[(head * PAGE + pos) * HEAD_DIM + i] = bitcast<u32>(stored[i]);
    }
}
