// out (r, n) = the rows of x (t, n) whose logits are wanted; workgroup y is the row.

struct Params {
    n: u32,
    x_at: u32,
    x_stride: u32,
    out_at: u32,
    out_stride: u32,
    rows_at: u32, // of the first wanted row's index, in env
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> x: array<f32>; // (t, n)
@group(0) @binding(1) var<storage, read> env: array<u32>; // see lib/env.wgsl
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // (r, n)

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let i = group.x * 256u + index;
    if i < p.n {
        out[p.out_at + group.y * p.out_stride + i] = x[p.x_at + env[p.rows_at + group.y] * p.x_stride + i];
    }
}
