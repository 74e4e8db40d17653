// y = W x for one token or a few (workgroup y): each team computes two rows at a time, every lane a unit at a time.
// NORM: x is normed on the way, y = rsqrt(mean(x^2) + eps) * sum(w * g * x): each team sees all of x anyway, so the norm
// costs no dispatch. GATE: rows come in pairs (gate, up) and the pair gives one value, act(gate) * up.

override ROWS: u32 = 16u; // of a workgroup; even
override NORM: bool = false;

@compute @workgroup_size(WORKGROUP)
fn main(at: Lane) {
    let token = at.group.y;
    let x_row = p.x_at + token * p.x_stride;
    for (var first = 0u; first < ROWS; first += 2u * teams_of(at)) {
        let local = first + 2u * team_of(at);
        let row = at.group.x * ROWS + local;
        let row0 = min(row, p.rows - 1u) * p.row_quads;
        let row1 = min(row + 1u, p.rows - 1u) * p.row_quads;
        var sums = vec3<f32>(0.0); // two rows, sum of squares
        for (var u = lane_of(at); u < p.units; u += lanes_of(at)) {
            var h = x_halves(x_row, u);
            if NORM {
                sums.z += quads_of(h.lo, h.lo) + quads_of(h.hi, h.hi);
                let quads = unit_quads(u) + vec2<u32>(p.norm_at / 4u);
                h = Halves(times(h.lo, g_four(quads.x)), times(h.hi, g_four(quads.y)));
            }
            let s = sums_of(h);
            sums.x += unit_dot(load_unit(row0, u, p.units), h.lo, h.hi, s);
            sums.y += unit_dot(load_unit(row1, u, p.units), h.lo, h.hi, s);
        }
        sums = team_sum(at, sums);
        if lane_of(at) == 0u && local < ROWS {
            put_pair(token, row, normed(sums));
        }
    }
}
