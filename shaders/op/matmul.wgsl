// y = W x for a batch: workgroup x is a tile of rows, workgroup y a tile of tokens. GATE as in matvec: an invocation
// owns whole (gate, up) pairs.

fn finish(token: u32, row: u32, a: vec4<f32>) {
    if GATE != 0u {
        if row < p.rows {
            put(token, row / 2u, activate(a.x) * a.y);
        }
        if row + 2u < p.rows {
            put(token, row / 2u + 1u, activate(a.z) * a.w);
        }
    } else {
        for (var i = 0u; i < 4u; i += 1u) {
            if row + i < p.rows {
                put(token, row + i, a[i] + bias(row + i));
            }
        }
    }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let first_row = group.x * TILE_ROWS;
    let first_token = group.y * TILE_TOKENS;
    for (var u = 0u; u < p.units; u += 1u) {
        if index < TILE_ROWS {
            stage_weights(index, min(first_row + index, p.rows - 1u) * p.row_quads, u);
        } else {
            for (var i = index - TILE_ROWS; i < 8u * TILE_TOKENS; i += TILE_ROWS) {
                let token = i % TILE_TOKENS;
                let quad = i / TILE_TOKENS;
                let row = p.x_at + min(first_token + token, p.tokens - 1u) * p.x_stride;
                stage_x(token, quad, x[row + quad_of(u, quad)]);
            }
        }
        workgroupBarrier();
        multiply(index);
        workgroupBarrier();
    }
    let row = first_row + index / 16u * 8u;
    for (var j = 0u; j < PER; j += 1u) {
        let token = first_token + index % 16u + 16u * j;
        if token < p.tokens {
            finish(token, row, acc[2u * j]);
            finish(token, row + 4u, acc[2u * j + 1u]);
        }
    }
}
