// out = act(gate) * up, where the two matrices have different formats and could not be interleaved.

struct Params {
    n: u32,
    gate_stride: u32, // f32 a token; up has the same
    out_at: u32,
    out_stride: u32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> gate: array<f32>; // (t, n)
@group(0) @binding(1) var<storage, read> up: array<f32>; // (t, n)
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // (t, n)

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let i = group.x * 256u + index;
    if i < p.n {
        let at = group.y * p.gate_stride + i;
        out[p.out_at + group.y * p.out_stride + i] = activate(gate[at]) * up[at];
    }
}
