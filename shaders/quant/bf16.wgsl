// BF16: the upper halves of f32 values; rows padded with zeros to whole units.

const SCALED: bool = false;
const OFFSET: bool = false;

fn unit_quads(u: u32) -> vec2<u32> { return vec2<u32>(u * 8u, u * 8u + 4u); }

fn widened(a: u32, b: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(a << 16u, a & 0xffff0000u, b << 16u, b & 0xffff0000u));
}

fn sixteen(at: u32) -> mat4x4<f32> {
    let a = quad(at);
    let b = quad(at + 1u);
    return mat4x4<f32>(widened(a.x, a.y), widened(a.z, a.w), widened(b.x, b.y), widened(b.z, b.w));
}

fn load_unit(row: u32, u: u32, units: u32) -> Unit {
    let at = row + u * 4u;
    return Unit(sixteen(at), sixteen(at + 2u), vec2<f32>(1.0), vec2<f32>(0.0));
}
