// Per token (workgroup y) and head (workgroup x: all of q, then all of k): the head is normed, turned by the rotary
// embedding, and goes back to q, or with its value to the cache. q, k and v may be parts of one buffer, so all three are
// bound for writing; no element is reached through two of them.

struct Params {
    heads: u32,
    kv_heads: u32,
    half: u32, // pairs that turn; 0 for none
    q_at: u32,
    q_stride: u32, // f32 a token
    k_at: u32,
    k_stride: u32,
    v_at: u32,
    v_stride: u32,
    q_norm: u32, // into vectors; NONE
    k_norm: u32,
    q_eps: f32,
    k_eps: f32,
    angles_at: u32, // pairs
    page_group: u32, // whose page tables are read
}

const NONE: u32 = 0xffffffffu;

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read_write> q: array<f32>; // (t, heads * HEAD_DIM)
@group(0) @binding(1) var<storage, read_write> k: array<f32>; // (t, kv_heads * HEAD_DIM)
@group(0) @binding(2) var<storage, read_write> v: array<f32>; // (t, kv_heads * HEAD_DIM)
@group(0) @binding(3) var<storage, read> vectors: array<f32>;
@group(0) @binding(4) var<storage, read> env: array<u32>; // see lib/env.wgsl
@group(0) @binding(5) var<storage, read> angles: array<vec2<f32>>; // (t, half): cos, sin

override HALVES: bool = true; // pairs are (i, i + half), else (2 i, 2 i + 1)

var<workgroup> squares: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let token = group.y;
    let is_q = group.x < p.heads;
    let head = select(group.x - p.heads, group.x, is_q);
    let q_row = p.q_at + token * p.q_stride + head * HEAD_DIM;
    let k_row = p.k_at + token * p.k_stride + head * HEAD_DIM;
    let v_row = p.v_at + token * p.v_stride + head * HEAD_DIM;
    var sum = 0.0;
    for (var i = index; i < HEAD_DIM; i += LANES) {
        var value = 0.0;
        if is_q {
            value = q[q_row + i];
        } else {
            value = k[k_row + i];
            stored[i] = v[v_row + i];
        }
        turned[i] = value;
        sum += value * value;
    }
    squares[index] = sum;
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        if index < step {
            squares[index] += squares[index + step];
        }
        workgroupBarrier();
    }
    let norm = select(p.k_norm, p.q_norm, is_q);
    if norm != NONE {
        let scale = inverseSqrt(squares[0] / f32(HEAD_DIM) + select(p.k_eps, p.q_eps, is_q));
        for (var i = index; i < HEAD_DIM; i += LANES) {
            turned[i] *= scale * vectors[norm + i];
        }
    }
    workgroupBarrier();
    for (var i = index; i < p.half; i += LANES) {
        let turn = angles[p.angles_at + token * p.half + i];
        let first = select(2u * i, i, HALVES);
        let second = select(2u * i + 1u, i + p.half, HALVES);
        let a = turned[first];
        let b = turned[second];
        turned[first] = a * turn.x - b * turn.y;
        turned[second] = b * turn.x + a * turn.y;
    }
    workgroupBarrier();
    if is_q {
        for (var i = index; i < HEAD_DIM; i += LANES) {
            q[q_row + i] = turned[i];
        }
    } else {
        let place = token_at(token);
        let page = page_of(place, p.page_group, place.y / PAGE);
        store(index, page * p.kv_heads + head, place.y % PAGE);
    }
}
