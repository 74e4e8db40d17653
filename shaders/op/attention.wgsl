// Causal attention over cache pages with an online softmax (Dao et al. 2023, section 3.1), for decode and for prefill.
// Workgroup x is a key-value head and a chunk of the query heads that share it, y a tile of neighbouring tokens of one
// sequence, z a part of the context. The tile's rows (token by query head) share every page they read: 64 positions
// are scored at a time, one a lane; then lanes own two dimensions each and mix the values. With several parts, partial
// sums go to `out` with their maximum and normaliser, for attention_merge. Loops run over pages: a context of 4 million
// tokens would be the first with a loop of more than 65,535 turns.

struct Params {
    heads: u32,
    kv_heads: u32,
    group: u32, // query heads of a key-value head
    chunk: u32, // query heads of a workgroup, at most
    chunks: u32,
    q_at: u32, // vec4
    q_stride: u32, // vec4 a token
    out_at: u32,
    out_stride: u32, // f32 a token
    tiles_at: u32, // into env: (first token, tokens) of each tile
    splits: u32,
    window: u32, // positions that a token sees, its own included; 0 for all
    page_group: u32, // whose page tables are read
    scale: f32,
}

var<immediate> p: Params;
@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>; // (t, heads * HEAD_DIM)
@group(0) @binding(3) var<storage, read> env: array<u32>; // see lib/env.wgsl
@group(0) @binding(4) var<storage, read_write> out: array<f32>; // (t, heads * HEAD_DIM), or (t, heads, splits, HEAD_DIM + 2)

override THREADS: u32 = 64u; // a multiple of 64 and of DIM_LANES, at least 8 * ROWS
override ROWS: u32 = 8u; // of a tile
override DIM_LANES: u32 = 32u; // a power of two, at least HEAD_DIM / 2
override SCORE_ROWS: u32 = 8u; // ROWS / (THREADS / 64), at most 8
override MIX_ROWS: u32 = 4u; // ROWS / (THREADS / DIM_LANES), 1 to 8

const PITCH: u32 = 72u; // of a row of scores: 8 more than a page, so that rows begin in different banks
const LEAST: f32 = -1e30;
const PARTS: u32 = 8u; // invocations that share a row in the softmax

var<workgroup> queries: array<vec4<f32>, ROWS * HEAD_DIM / 4u>; // (ROWS, HEAD_DIM), scaled
var<workgroup> scores: array<f32, ROWS * PITCH>;
var<workgroup> maxima: array<f32, ROWS * PARTS>;
var<workgroup> shrink: array<f32, ROWS>; // of what was summed before this page
var<workgroup> lowest: array<u32, ROWS>; // first position that the row sees
var<workgroup> limit: array<u32, ROWS>; // first position that it does not see any more

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    let kv_head = workgroup.x / p.chunks;
    let chunk_at = workgroup.x % p.chunks * p.chunk;
    let chunk = min(p.chunk, p.group - chunk_at);
    let first_head = kv_head * p.group + chunk_at;
    let first_token = env[p.tiles_at + 2u * workgroup.y];
    let tokens = env[p.tiles_at + 2u * workgroup.y + 1u];
    let rows = tokens * chunk;
    let last = token_at(first_token + tokens - 1u);

    for (var i = index; i < ROWS * HEAD_DIM / 4u; i += THREADS) {
        let row = i / (HEAD_DIM / 4u);
        var v = vec4<f32>(0.0);
        if row < rows {
            let head = first_head + row % chunk;
            let at = p.q_at + (first_token + row / chunk) * p.q_stride + head * (HEAD_DIM / 4u);
            v = q[at + i % (HEAD_DIM / 4u)] * p.scale;
        }
        queries[i] = v;
    }
    if index < ROWS {
        var see = vec2<u32>(0u, 0u);
        if index < rows {
            let pos = token_at(first_token + index / chunk).y;
            see = vec2<u32>(select(0u, pos + 1u - min(p.window, pos + 1u), p.window > 0u), pos + 1u);
        }
        lowest[index] = see.x;
        limit[index] = see.y;
    }
    workgroupBarrier();

    let start = token_at(first_token).y + 1u;
    let first_page = select(0u, (start - min(p.window, start)) / PAGE, p.window > 0u);
    let pages = last.y / PAGE + 1u - first_page;
    // pages * splits stays below 2^32: at most 2^26 pages, 64 splits.
    let begin = first_page + pages * workgroup.z / p.splits;
    let to = first_page + pages * (workgroup.z + 1u) / p.splits;

    let score_row = index / PAGE * SCORE_ROWS;
    let soft_row = index / PARTS; // idle from ROWS on
    let part = index % PARTS;
    let mix_row = index / DIM_LANES * MIX_ROWS;
    let dims = index % DIM_LANES;
    var mixed: array<vec2<f32>, 8>; // MIX_ROWS of two dimensions
    var largest = LEAST;
    var total = 0.0; // of this invocation's eight positions of each page

    for (var page = begin; page < to; page += 1u) {
        let head = page_of(last, p.page_group, page) * p.kv_heads + kv_head;
        let base = page * PAGE;
        let pos = index % PAGE;
        var s: array<f32, 8>;
        for (var c = 0u; c < HEAD_DIM / 8u; c += 1u) {
            let key = key8(head, c, pos);
            for (var j = 0u; j < SCORE_ROWS; j += 1u) {
                let at = (score_row + j) * (HEAD_DIM / 4u) + 2u * c;
                s[j] += dot(queries[at], key[0]) + dot(queries[at + 1u], key[1]);
            }
        }
        for (var j = 0u; j < SCORE_ROWS; j += 1u) {
            let row = score_row + j;
            let seen = base + pos >= lowest[row] && base + pos < limit[row];
            scores[row * PITCH + pos] = select(LEAST, s[j], seen);
        }
        workgroupBarrier();

        var most = LEAST;
        if soft_row < ROWS {
            for (var i = part; i < PAGE; i += PARTS) {
                most = max(most, scores[soft_row * PITCH + i]);
            }
            maxima[index] = most;
        }
        workgroupBarrier();
        if soft_row < ROWS {
            most = largest;
            for (var i = 0u; i < PARTS; i += 1u) {
                most = max(most, maxima[soft_row * PARTS + i]);
            }
            let factor = exp(largest - most);
            total *= factor;
            for (var i = part; i < PAGE; i += PARTS) {
                let at = soft_row * PITCH + i;
                let v = scores[at];
                let e = select(0.0, exp(v - most), v > LEAST);
                scores[at] = e;
                total += e;
            }
            largest = most;
            if part == 0u {
                shrink[soft_row] = factor;
            }
        }
        workgroupBarrier();

        let n = min(PAGE, last.y + 1u - base);
        for (var j = 0u; j < MIX_ROWS; j += 1u) {
            mixed[j] *= shrink[min(mix_row + j, ROWS - 1u)];
        }
        if dims < HEAD_DIM / 2u {
            for (var i = 0u; i < n; i += 1u) {
                let value = value2(head, i, dims);
                for (var j = 0u; j < MIX_ROWS; j += 1u) {
                    mixed[j] += scores[min(mix_row + j, ROWS - 1u) * PITCH + i] * value;
                }
            }
        }
        workgroupBarrier();
    }

    if soft_row < ROWS {
        maxima[index] = total;
        if part == 0u {
            shrink[soft_row] = largest;
        }
    }
    workgroupBarrier();
    for (var j = 0u; j < MIX_ROWS; j += 1u) {
        let row = mix_row + j;
        if row < min(rows, ROWS) && dims < HEAD_DIM / 2u {
            var sum = 0.0;
            for (var i = 0u; i < PARTS; i += 1u) {
                sum += maxima[row * PARTS + i];
            }
            let token = first_token + row / chunk;
            let head = first_head + row % chunk;
            if p.splits == 1u {
                let at = p.out_at + token * p.out_stride + head * HEAD_DIM + 2u * dims;
                out[at] = mixed[j].x / sum;
                out[at + 1u] = mixed[j].y / sum;
            } else {
                let at = ((token * p.heads + head) * p.splits + workgroup.z) * (HEAD_DIM + 2u);
                out[at + 2u * dims] = mixed[j].x;
                out[at + 2u * dims + 1u] = mixed[j].y;
                if dims == 0u {
                    out[at + HEAD_DIM] = shrink[row];
                    out[at + HEAD_DIM + 1u] = sum;
                }
            }
        }
    }
}
