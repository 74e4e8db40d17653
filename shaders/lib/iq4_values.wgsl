// The 16 values that the nibbles of IQ4_NL and IQ4_XS stand for, plus 127, four to a word.

const IQ4_WORDS = vec4<u32>(0x3e2c1700u, 0x75695c4eu, 0xa5988c80u, 0xf0d8c4b4u);

fn iq4_value(index: u32) -> f32 {
    return f32((IQ4_WORDS[index / 4u] >> (index % 4u * 8u)) & 255u) - 127.0;
}

fn iq4_values(nibbles: u32) -> vec4<f32> {
    let i = unpack4xU8(nibbles);
    return vec4<f32>(iq4_value(i.x), iq4_value(i.y), iq4_value(i.z), iq4_value(i.w));
}

fn iq4_sixteen(nibbles: vec4<u32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        iq4_values(nibbles.x),
        iq4_values(nibbles.y),
        iq4_values(nibbles.z),
        iq4_values(nibbles.w),
    );
}
