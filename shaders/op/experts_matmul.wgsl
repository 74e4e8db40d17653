// One expert's product for all pairs that picked it: workgroup x is a tile of rows, y the expert, z a tile of its pairs;
// tiles past the end do nothing. GATED: x is (t, k), out (t * used, rows / 2) = act(gate x) * (up x). Else x is
// (t * used, k), out (t * used, rows) = weight * (down x), which experts_sum adds up.

@group(0) @binding(7) var<storage, read> groups: array<u32>; // from experts_group

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let expert = group.y;
    let slot = slot_of(expert);
    let start = groups[expert] + group.z * TILE_TOKENS;
    let end = groups[expert + 1u];
    let live = slot != NONE && start < end;
    let units = select(0u, p.units, live);
    let first_row = group.x * TILE_ROWS;
    let pairs_at = p.experts + 1u;
    for (var u = 0u; u < units; u += 1u) {
        if index < TILE_ROWS {
            stage_weights(index, row_at(slot, min(first_row + index, p.rows - 1u)), u);
        } else {
            for (var i = index - TILE_ROWS; i < 8u * TILE_TOKENS; i += TILE_ROWS) {
                let member = i % TILE_TOKENS;
                let quad = i / TILE_TOKENS;
                let pair = groups[pairs_at + min(start + member, end - 1u)];
                let begin = select(pair, pair / p.used, GATE != 0u);
                stage_x(member, quad, x[p.x_at + begin * p.x_stride + quad_of(u, quad)]);
            }
        }
        workgroupBarrier();
        multiply(index);
        workgroupBarrier();
    }
    let row = first_row + index / 16u * 8u;
    for (var j = 0u; j < PER; j += 1u) {
        let member = start + index % 16u + 16u * j;
        if live && member < end {
            let pair = groups[pairs_at + member];
            finish(pair, row, acc[2u * j]);
            finish(pair, row + 4u, acc[2u * j + 1u]);
        }
    }
}

fn finish(pair: u32, row: u32, a: vec4<f32>) {
    let to = p.out_at + pair * p.out_stride;
    if GATE != 0u {
        if row < p.rows {
            out[to + row / 2u] = activate(a.x) * a.y;
        }
        if row + 2u < p.rows {
            out[to + row / 2u + 1u] = activate(a.z) * a.w;
        }
    } else {
        let weight = bitcast<f32>(picks[p.weights_at + pair]);
        for (var i = 0u; i < 4u; i += 1u) {
            if row + i < p.rows {
                out[to + row + i] = weight * a[i];
            }
        }
    }
}
