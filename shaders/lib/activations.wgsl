// The 32 values of x that belong to a unit, in its halves.

struct Halves {
    lo: mat4x4<f32>,
    hi: mat4x4<f32>,
}

fn x_four(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(x[at], x[at + 1u], x[at + 2u], x[at + 3u]);
}

// `row` is the first vec4 of the token in x.
fn x_halves(row: u32, u: u32) -> Halves {
    let at = unit_quads(u);
    return Halves(x_four(row + at.x), x_four(row + at.y));
}

fn sums_of(h: Halves) -> vec2<f32> {
    let ones = vec4<f32>(1.0);
    return vec2<f32>(
        dot(h.lo[0] + h.lo[1] + h.lo[2] + h.lo[3], ones),
        dot(h.hi[0] + h.hi[1] + h.hi[2] + h.hi[3], ones),
    );
}
