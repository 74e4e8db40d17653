// What matvec and matmul share: the parameters and bindings of y = W x.

struct Params {
    units: u32, // of 32 weights, a row of w
    row_quads: u32, // vec4 a row of w
    rows: u32, // of w; two for each output when gated
    tokens: u32, // t
    x_at: u32, // first vec4 of x
    x_stride: u32, // vec4 a token
    out_at: u32,
    out_stride: u32, // f32 a token
    bias_at: u32, // into vectors; NONE
    norm_at: u32, // into vectors
    k: u32, // values of x that the norm averages
    eps: f32,
}

const NONE: u32 = 0xffffffffu;

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> w: array<vec4<u32>>; // (rows, row_quads)
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // (t, k)
@group(0) @binding(2) var<storage, read> vectors: array<vec4<f32>>; // norm weights and biases
@group(0) @binding(3) var<storage, read_write> out: array<f32>; // (t, rows), gated: (t, rows / 2)

override ADD: bool = false;

fn quad(at: u32) -> vec4<u32> { return w[at]; }

fn bias(row: u32) -> f32 {
    if p.bias_at == NONE {
        return 0.0;
    }
    let i = p.bias_at + row;
    return vectors[i / 4u][i % 4u];
}

fn put(token: u32, row: u32, v: f32) {
    let at = p.out_at + token * p.out_stride + row;
    if ADD {
        out[at] += v;
    } else {
        out[at] = v;
    }
}
