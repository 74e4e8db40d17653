// out (t, n) = scale * the table's row of each token (workgroup x); a bank of the table serves the ids that lie in it.

struct Params {
    units: u32, // of 32 weights, a row
    row_quads: u32, // vec4 a row
    first: u32, // id of the bank's first row
    rows: u32, // of the bank
    n: u32,
    out_at: u32,
    out_stride: u32,
    scale: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>; // (rows, row_quads)
@group(0) @binding(1) var<storage, read> env: array<u32>; // see lib/env.wgsl
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // (t, n)

fn quad(at: u32) -> vec4<u32> { return w[at]; }

fn put_half(to: u32, quad: u32, q: mat4x4<f32>) {
    for (var i = 0u; i < 16u; i += 1u) {
        if quad * 4u + i < p.n {
            out[to + quad * 4u + i] = p.scale * q[i / 4u][i % 4u];
        }
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let id = token_at(group.x).x;
    if id < p.first || id - p.first >= p.rows {
        return;
    }
    let row = (id - p.first) * p.row_quads;
    let to = p.out_at + group.x * p.out_stride;
    for (var u = index; u < p.units; u += 64u) {
        let unit = load_unit(row, u, p.units);
        let at = unit_quads(u);
        put_half(to, at.x, half_values(unit.lo, unit.scale.x, unit.offset.x));
        put_half(to, at.y, half_values(unit.hi, unit.scale.y, unit.offset.y));
    }
}
