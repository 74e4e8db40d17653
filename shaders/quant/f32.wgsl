// F32: rows padded with zeros to whole units.

const SCALED: bool = false;
const OFFSET: bool = false;

fn unit_quads(u: u32) -> vec2<u32> { return vec2<u32>(u * 8u, u * 8u + 4u); }

fn four(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(
        bitcast<vec4<f32>>(quad(at)),
        bitcast<vec4<f32>>(quad(at + 1u)),
        bitcast<vec4<f32>>(quad(at + 2u)),
        bitcast<vec4<f32>>(quad(at + 3u)),
    );
}

fn load_unit(row: u32, u: u32, units: u32) -> Unit {
    let at = row + u * 8u;
    return Unit(four(at), four(at + 4u), vec2<f32>(1.0), vec2<f32>(0.0));
}
