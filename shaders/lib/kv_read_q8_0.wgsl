// Reads a cache of int8 with an f16 scale for 32 values of a position; the scales follow each head's quants, those of
// two neighbouring groups in one word, so that no two positions share a word that is written.

@group(0) @binding(1) var<storage, read> keys: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> values: array<u32>;

// Words that hold a position's scales.
fn scale_words() -> u32 { return (HEAD_DIM + 63u) / 64u; }

fn scale_in(word: u32, group: u32) -> f32 {
    let pair = unpack2x16float(word);
    return select(pair.x, pair.y, group % 2u == 1u);
}

fn key8(head: u32, c: u32, pos: u32) -> mat2x4<f32> {
    let begin = head * (HEAD_DIM * 8u + scale_words() * 32u); // (HEAD_DIM / 8, 64) vec2, then (scale_words, 64) words
    let q = keys[begin + c * PAGE + pos];
    let group = c / 4u;
    let scales = keys[begin + HEAD_DIM * 8u + (group / 2u * PAGE + pos) / 2u];
    let d = scale_in(select(scales.x, scales.y, pos % 2u == 1u), group);
    return mat2x4<f32>(d * vec4<f32>(unpack4xI8(q.x)), d * vec4<f32>(unpack4xI8(q.y)));
}

fn value2(head: u32, pos: u32, i: u32) -> vec2<f32> {
    let begin = head * (HEAD_DIM * 16u + scale_words() * 64u); // (64, HEAD_DIM / 4) words, then (64, scale_words)
    let q = vec4<f32>(unpack4xI8(values[begin + pos * (HEAD_DIM / 4u) + i / 2u]));
    let group = i / 16u;
    let d = scale_in(values[begin + HEAD_DIM * 16u + pos * scale_words() + group / 2u], group);
    return d * select(q.xy, q.zw, i % 2u == 1u);
}
