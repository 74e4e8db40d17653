// Reads a cache of f32, for comparisons.

@group(0) @binding(1) var<storage, read> keys: array<vec4<f32>>; // (pages, kv_heads, HEAD_DIM / 8, 64, 2)
@group(0) @binding(2) var<storage, read> values: array<vec2<f32>>; // (pages, kv_heads, 64, HEAD_DIM / 2)

fn key8(head: u32, c: u32, pos: u32) -> mat2x4<f32> {
    let at = ((head * (HEAD_DIM / 8u) + c) * PAGE + pos) * 2u;
    return mat2x4<f32>(keys[at], keys[at + 1u]);
}

fn value2(head: u32, pos: u32, i: u32) -> vec2<f32> {
    return values[(head * PAGE + pos) * (HEAD_DIM / 2u) + i];
}
