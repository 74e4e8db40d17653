// hidden (t * used, rows / 2) = act(gate_e x) * (up_e x) for the picked experts e: workgroup y is the pick, workgroup z
// the token. Rows come in pairs (gate, up).

override ROWS: u32 = 16u; // of a workgroup; even

@compute @workgroup_size(WORKGROUP)
fn main(at: Lane) {
    let pick = at.group.y;
    let token = at.group.z;
    let slot = slot_of(picks[token * p.used + pick]);
    let units = select(p.units, 0u, slot == NONE);
    let x_row = p.x_at + token * p.x_stride;
    for (var first = 0u; first < ROWS; first += 2u * teams_of(at)) {
        let local = first + 2u * team_of(at);
        let row = at.group.x * ROWS + local;
        let row0 = row_at(slot, min(row, p.rows - 2u));
        var sums = vec3<f32>(0.0);
        for (var u = lane_of(at); u < units; u += lanes_of(at)) {
            let h = x_halves(x_row, u);
            let s = sums_of(h);
            sums.x += unit_dot(load_unit(row0, u, p.units), h.lo, h.hi, s);
            sums.y += unit_dot(load_unit(row0 + p.row_quads, u, p.units), h.lo, h.hi, s);
        }
        sums = team_sum(at, sums);
        if lane_of(at) == 0u && local < ROWS && row < p.rows && slot != NONE {
            out[p.out_at + (token * p.used + pick) * p.out_stride + row / 2u] = activate(sums.x) * sums.y;
        }
    }
}
