// out = x / sqrt(mean(x^2) + eps) * g for each row (workgroup x); ADD: out += that.

struct Params {
    n: u32,
    x_at: u32,
    x_stride: u32, // f32 a row
    out_at: u32,
    out_stride: u32,
    norm_at: u32, // into vectors
    eps: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>; // (t, n)
@group(0) @binding(1) var<storage, read> vectors: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // (t, n)

override ADD: bool = false;

@compute @workgroup_size(REDUCE)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let begin = p.x_at + group.x * p.x_stride;
    let to = p.out_at + group.x * p.out_stride;
    var squares = 0.0;
    for (var i = index; i < p.n; i += REDUCE) {
        let v = x[begin + i];
        squares += v * v;
    }
    let scale = inverseSqrt(workgroup_sum(index, squares) / f32(p.n) + p.eps);
    for (var i = index; i < p.n; i += REDUCE) {
        let y = x[begin + i] * scale * vectors[p.norm_at + i];
        if ADD {
            out[to + i] += y;
        } else {
            out[to + i] = y;
        }
    }
}
