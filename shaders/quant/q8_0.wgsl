// Q8_0: per row the quants of all blocks (32 B each), then their scales (f16). Weight = d * q.

const SCALED: bool = true;
const OFFSET: bool = false;

fn unit_quads(u: u32) -> vec2<u32> { return vec2<u32>(u * 8u, u * 8u + 4u); }

fn signed16(words: vec4<u32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        vec4<f32>(unpack4xI8(words.x)),
        vec4<f32>(unpack4xI8(words.y)),
        vec4<f32>(unpack4xI8(words.z)),
        vec4<f32>(unpack4xI8(words.w)),
    );
}

fn load_unit(row: u32, u: u32, units: u32) -> Unit {
    let at = row + u * 2u;
    let d = f16_at(row + units * 2u, u);
    return Unit(signed16(quad(at)), signed16(quad(at + 1u)), vec2<f32>(d), vec2<f32>(0.0));
}
