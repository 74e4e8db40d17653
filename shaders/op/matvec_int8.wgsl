// matvec with activations rounded to int8 and integer dot products (dp4a), for adapters that have them in hardware.
// Each workgroup rounds x itself, once for all its rows, into workgroup memory: no dispatch is added, and lanes read a
// quarter of the bytes. 16 neighbouring values share a scale, as the halves of a unit do. Offsets of weights meet the
// exact sums of x. NORM and GATE as in matvec.

override ROWS: u32 = 16u; // of a workgroup; even
override NORM: bool = false;
override BLOCKS: u32 = 96u; // of 16 values, that a row of x has

var<workgroup> x_quants: array<vec4<u32>, BLOCKS>;
var<workgroup> x_scales: array<vec2<f32>, BLOCKS>; // scale, sum of the values
var<workgroup> squares: array<f32, WORKGROUP>;

fn rounded(v: vec4<f32>) -> u32 {
    return pack4xI8(vec4<i32>(round(v)));
}

fn quads_max(m: mat4x4<f32>) -> f32 {
    let v = max(max(abs(m[0]), abs(m[1])), max(abs(m[2]), abs(m[3])));
    return max(max(v.x, v.y), max(v.z, v.w));
}

// Rounds x; the sum of squares of this invocation's values.
fn stage(index: u32, x_row: u32) -> f32 {
    let ones = vec4<f32>(1.0);
    var sum = 0.0;
    for (var b = index; b < BLOCKS; b += WORKGROUP) {
        var v = x_four(x_row + b * 4u);
        if NORM {
            sum += quads_of(v, v);
            v = times(v, g_four(p.norm_at / 4u + b * 4u));
        }
        let most = quads_max(v);
        let inverse = select(0.0, 127.0 / most, most > 0.0);
        let q = v * inverse;
        x_quants[b] = vec4<u32>(rounded(q[0]), rounded(q[1]), rounded(q[2]), rounded(q[3]));
        x_scales[b] = vec2<f32>(most / 127.0, dot(v[0] + v[1] + v[2] + v[3], ones));
    }
    return sum;
}

fn half_dot(w: vec4<u32>, x: vec4<u32>) -> f32 {
    return f32(dot4I8Packed(w.x, x.x) + dot4I8Packed(w.y, x.y) + dot4I8Packed(w.z, x.z) + dot4I8Packed(w.w, x.w));
}

// The unit times the rounded activations of its halves' blocks.
fn packed_dot(w: Packed, lo: u32, hi: u32) -> f32 {
    let x_lo = x_scales[lo];
    let x_hi = x_scales[hi];
    let parts = vec2<f32>(half_dot(w.lo, x_quants[lo]) * x_lo.x, half_dot(w.hi, x_quants[hi]) * x_hi.x);
    var v = dot(w.scale, parts);
    if OFFSET {
        v += dot(w.offset, vec2<f32>(x_lo.y, x_hi.y));
    }
    return v;
}

@compute @workgroup_size(WORKGROUP)
fn main(at: Lane) {
    let token = at.group.y;
    squares[at.index] = stage(at.index, p.x_at + token * p.x_stride);
    workgroupBarrier();
    for (var first = 0u; first < ROWS; first += 2u * teams_of(at)) {
        let local = first + 2u * team_of(at);
        let row = at.group.x * ROWS + local;
        let row0 = min(row, p.rows - 1u) * p.row_quads;
        let row1 = min(row + 1u, p.rows - 1u) * p.row_quads;
        var sums = vec3<f32>(0.0); // two rows, sum of squares
        for (var u = lane_of(at); u < p.units; u += lanes_of(at)) {
            let blocks = unit_quads(u) / 4u;
            sums.x += packed_dot(load_packed(row0, u, p.units), blocks.x, blocks.y);
            sums.y += packed_dot(load_packed(row1, u, p.units), blocks.x, blocks.y);
        }
        if NORM {
            for (var i = lane_of(at); i < WORKGROUP; i += lanes_of(at)) {
                sums.z += squares[i];
            }
        }
        sums = team_sum(at, sums);
        if lane_of(at) == 0u && local < ROWS {
            put_pair(token, row, normed(sums));
        }
    }
}
