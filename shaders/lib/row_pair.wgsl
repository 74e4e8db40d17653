// What matvec and matvec_int8 share: the norm that is fused in, and what becomes of two neighbouring rows' sums.

fn g_four(at: u32) -> mat4x4<f32> {
    return mat4x4<f32>(vectors[at], vectors[at + 1u], vectors[at + 2u], vectors[at + 3u]);
}

fn times(a: mat4x4<f32>, b: mat4x4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]);
}

// The products of two rows; `sums` are theirs over w * g * x, and the sum of squares of x.
fn normed(sums: vec3<f32>) -> vec2<f32> {
    if NORM {
        return sums.xy * inverseSqrt(sums.z / f32(p.k) + p.eps);
    }
    return sums.xy;
}

fn put_pair(token: u32, row: u32, y: vec2<f32>) {
    if GATE != 0u {
        if row < p.rows {
            put(token, row / 2u, activate(y.x) * y.y);
        }
    } else {
        if row < p.rows {
            put(token, row, y.x + bias(row));
        }
        if row + 1u < p.rows {
            put(token, row + 1u, y.y + bias(row + 1u));
        }
    }
}
