// F16: rows padded with zeros to whole units.

const SCALED: bool = false;
const OFFSET: bool = false;

fn unit_quads(u: u32) -> vec2<u32> { return vec2<u32>(u * 8u, u * 8u + 4u); }

fn sixteen(at: u32) -> mat4x4<f32> {
    let a = quad(at);
    let b = quad(at + 1u);
    return mat4x4<f32>(
        vec4<f32>(unpack2x16float(a.x), unpack2x16float(a.y)),
        vec4<f32>(unpack2x16float(a.z), unpack2x16float(a.w)),
        vec4<f32>(unpack2x16float(b.x), unpack2x16float(b.y)),
        vec4<f32>(unpack2x16float(b.z), unpack2x16float(b.w)),
    );
}

fn load_unit(row: u32, u: u32, units: u32) -> Unit {
    let at = row + u * 4u;
    return Unit(sixteen(at), sixteen(at + 2u), vec2<f32>(1.0), vec2<f32>(0.0));
}
