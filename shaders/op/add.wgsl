// out (t, n) += x (t, n): the share of a sum that another side computed. Workgroup y is the token.

struct Params {
    n: u32,
    x_stride: u32,
    out_at: u32,
    out_stride: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>; // (t, n)
@group(0) @binding(1) var<storage, read_write> out: array<f32>; // (t, n)

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let i = group.x * 256u + index;
    if i < p.n {
        out[p.out_at + group.y * p.out_stride + i] += x[group.y * p.x_stride + i];
    }
}
