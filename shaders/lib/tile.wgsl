// The tile that both matmuls compute: TILE_ROWS rows of W by TILE_TOKENS tokens, 32 weights of depth a step.
// 256 invocations: the first 128 decode one row's unit each, the others fetch the activations that belong to it; then
// each multiplies 8 rows by PER tokens. All in f32: f16 tiles overflow on some drivers.

override PER: u32 = 4u; // tokens of an invocation: 4, or 1 for few tokens
override TILE_TOKENS: u32 = 64u; // 16 * PER

const TILE_ROWS: u32 = 128u;
const DEPTH: u32 = 32u;

var<workgroup> w_tile: array<f32, 4096>; // (DEPTH, TILE_ROWS)
var<workgroup> x_tile: array<f32, 2048>; // (DEPTH, TILE_TOKENS)
// Of token j: rows 0..4 in acc[2 j], 4..8 in acc[2 j + 1].
var<private> acc: array<vec4<f32>, 8>;

fn stage_half(index: u32, begin: u32, q: mat4x4<f32>) {
    for (var i = 0u; i < 4u; i += 1u) {
        let at = (begin + i * 4u) * TILE_ROWS + index;
        let v = q[i];
        w_tile[at] = v.x;
        w_tile[at + TILE_ROWS] = v.y;
        w_tile[at + 2u * TILE_ROWS] = v.z;
        w_tile[at + 3u * TILE_ROWS] = v.w;
    }
}

// `row` is the vec4 at which row `index` of the tile begins.
fn stage_weights(index: u32, row: u32, u: u32) {
    let unit = load_unit(row, u, p.units);
    stage_half(index, 0u, half_values(unit.lo, unit.scale.x, unit.offset.x));
    stage_half(index, 16u, half_values(unit.hi, unit.scale.y, unit.offset.y));
}

// Quad 0..8 of the unit's activations, of one token of the tile.
fn stage_x(token: u32, quad: u32, v: vec4<f32>) {
    let at = quad * 4u * TILE_TOKENS + token;
    x_tile[at] = v.x;
    x_tile[at + TILE_TOKENS] = v.y;
    x_tile[at + 2u * TILE_TOKENS] = v.z;
    x_tile[at + 3u * TILE_TOKENS] = v.w;
}

// The vec4 of x that quad 0..8 of unit u is, from the row's first.
fn quad_of(u: u32, quad: u32) -> u32 {
    let halves = unit_quads(u);
    return select(halves.y + quad - 4u, halves.x + quad, quad < 4u);
}

// Invocation `index` owns rows 8 * (index / 16).. and tokens index % 16 + 16 j.
fn multiply(index: u32) {
    let rows = index / 16u * 8u;
    let token = index % 16u;
    for (var k = 0u; k < DEPTH; k += 1u) {
        let at = k * TILE_ROWS + rows;
        let w0 = vec4<f32>(w_tile[at], w_tile[at + 1u], w_tile[at + 2u], w_tile[at + 3u]);
        let w1 = vec4<f32>(w_tile[at + 4u], w_tile[at + 5u], w_tile[at + 6u], w_tile[at + 7u]);
        let begin = k * TILE_TOKENS + token;
        let x0 = x_tile[begin];
        acc[0] += w0 * x0;
        acc[1] += w1 * x0;
        if PER == 4u {
            let x1 = x_tile[begin + 16u];
            let x2 = x_tile[begin + 32u];
            let x3 = x_tile[begin + 48u];
            acc[2] += w0 * x1;
            acc[3] += w1 * x1;
            acc[4] += w0 * x2;
            acc[5] += w1 * x2;
            acc[6] += w0 * x3;
            acc[7] += w1 * x3;
        }
    }
}
