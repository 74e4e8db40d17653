// Reads a cache of f16 pairs packed in words; needs no f16 extension.

@group(0) @binding(1) var<storage, read> keys: array<vec4<u32>>; // (pages, kv_heads, HEAD_DIM / 8, 64)
@group(0) @binding(2) var<storage, read> values: array<u32>; // (pages, kv_heads, 64, HEAD_DIM / 2)

// Dimensions 8 c..8 c + 8 of the key at `pos`; `head` counts heads over all pages.
fn key8(head: u32, c: u32, pos: u32) -> mat2x4<f32> {
    let k = keys[(head * (HEAD_DIM / 8u) + c) * PAGE + pos];
    return mat2x4<f32>(
        vec4<f32>(unpack2x16float(k.x), unpack2x16float(k.y)),
        vec4<f32>(unpack2x16float(k.z), unpack2x16float(k.w)),
    );
}

// Dimensions 2 i and 2 i + 1 of the value at `pos`.
fn value2(head: u32, pos: u32, i: u32) -> vec2<f32> {
    return unpack2x16float(values[(head * PAGE + pos) * (HEAD_DIM / 2u) + i]);
}
