// Merges the parts that attention left of one head (workgroup x) of one token (workgroup y).

struct Params {
    heads: u32,
    splits: u32,
    out_at: u32,
    out_stride: u32, // f32 a token
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> parts: array<f32>; // (t, heads, splits, HEAD_DIM + 2)
@group(0) @binding(1) var<storage, read_write> out: array<f32>; // (t, heads * HEAD_DIM)

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let pitch = HEAD_DIM + 2u;
    let begin = (group.y * p.heads + group.x) * p.splits * pitch;
    var largest = -1e30;
    for (var s = 0u; s < p.splits; s += 1u) {
        largest = max(largest, parts[begin + s * pitch + HEAD_DIM]);
    }
    var total = 0.0;
    for (var s = 0u; s < p.splits; s += 1u) {
        let at = begin + s * pitch + HEAD_DIM;
        total += exp(parts[at] - largest) * parts[at + 1u];
    }
    for (var i = index; i < HEAD_DIM; i += 64u) {
        var sum = 0.0;
        for (var s = 0u; s < p.splits; s += 1u) {
            let at = begin + s * pitch;
            sum += exp(parts[at + HEAD_DIM] - largest) * parts[at + i];
        }
        out[p.out_at + group.y * p.out_stride + group.x * HEAD_DIM + i] = sum / total;
    }
}
