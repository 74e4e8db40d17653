// out (t, rows) += sum over the picked experts e of weight_e * (down_e hidden_e): workgroup y is the token. Each lane sums
// over the experts first, so a row is reduced once.

override ROWS: u32 = 16u; // of a workgroup; even

@compute @workgroup_size(WORKGROUP)
fn main(at: Lane) {
    let token = at.group.y;
    for (var first = 0u; first < ROWS; first += 2u * teams_of(at)) {
        let local = first + 2u * team_of(at);
        let row = at.group.x * ROWS + local;
        var sums = vec3<f32>(0.0);
        for (var pick = 0u; pick < p.used; pick += 1u) {
            let slot = slot_of(picks[token * p.used + pick]);
            if slot != NONE {
                let weight = bitcast<f32>(picks[p.weights_at + token * p.used + pick]);
                let row0 = row_at(slot, min(row, p.rows - 1u));
                let row1 = row_at(slot, min(row + 1u, p.rows - 1u));
                let x_row = p.x_at + (token * p.used + pick) * p.x_stride;
                for (var u = lane_of(at); u < p.units; u += lanes_of(at)) {
                    let h = x_halves(x_row, u);
                    let s = sums_of(h);
                    sums.x += weight * unit_dot(load_unit(row0, u, p.units), h.lo, h.hi, s);
                    sums.y += weight * unit_dot(load_unit(row1, u, p.units), h.lo, h.hi, s);
                }
            }
        }
        sums = team_sum(at, sums);
        if lane_of(at) == 0u && local < ROWS {
            let to = p.out_at + token * p.out_stride + row;
            if row < p.rows {
                out[to] += sums.x;
            }
            if row + 1u < p.rows {
                out[to + 1u] += sums.y;
            }
        }
    }
}
