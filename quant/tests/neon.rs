//! The 64-bit Arm kernels against the scalar truth, from a plain main: emulators run it too.
//!
//! Elsewhere it says that it skipped. With an aarch64 linker and standard library:
//! `cargo build --release --target aarch64-unknown-linux-gnu -p rynd-quant --test neon`, then
//! `qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu max,pauth-impdef=on target/aarch64-unknown-linux-gnu/release/deps/neon-*`.

use rynd_quant::{ActKind, ActView, Acts, Format, Kernels, Level, OutView, Tokens};

fn noise(n: usize, seed: &mut u32) -> Vec<u32> {
    (0..n)
        .map(|_| {
            *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *seed >> 8
        })
        .collect()
}

/// Random blocks whose f16 scales are sane: every f16 field is overwritten with a small number.
fn blocks(format: Format, n: usize, seed: &mut u32) -> Vec<u8> {
    let mut bytes: Vec<u8> = noise(n * format.block_bytes(), seed).into_iter().map(|x| x as u8).collect();
    let halves: &[usize] = match format {
        Format::Q4_K | Format::Q5_K | Format::Q4_1 | Format::Q5_1 => &[0, 2],
        Format::Q6_K => &[208],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::TQ2_0 => &[64],
        Format::MXFP4 => &[],
        _ => &[0],
    };
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for &at in halves {
            let value = half::f16::from_f32(0.01 + f32::from(block[at]) / 4096.0);
            block[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        if format == Format::MXFP4 {
            block[0] = 120 + block[0] % 8;
        }
    }
    bytes
}

fn main() {
    let Some(neon) = Kernels::at(Level::Neon) else {
        println!("skipped: no NEON dot product on this machine");
        return;
    };
    let Some(scalar) = Kernels::at(Level::Scalar) else { unreachable!("scalar code runs everywhere") };
    let formats = [
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::Q8_0,
        Format::Q5_0,
        Format::F16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_1,
        Format::IQ4_NL,
        Format::IQ4_XS,
        Format::Q2_K,
        Format::Q3_K,
        Format::MXFP4,
        Format::TQ2_0,
    ];
    let mut seed = 7;
    let mut checked = 0;
    for format in formats {
        for (k, rows, tokens) in [(256, 1, 1), (768, 17, 3), (2048, 5, 13)] {
            let bytes = blocks(format, rows * k / format.block_len(), &mut seed);
            let x: Vec<f32> = noise(tokens * k, &mut seed).into_iter().map(|x| x as f32 / 8_388_608.0 - 1.0).collect();
            let mut acts = Acts::default();
            let linear = neon.linear(format);
            let view = match linear.act() {
                ActKind::F32 => ActView::f32(&x, k),
                kind => acts.quantise(kind, k, &x),
            };
            let mut found = vec![0.0; tokens * rows];
            let mut truth = vec![0.0; tokens * rows];
            for (kernels, out) in [(neon, &mut found), (scalar, &mut truth)] {
                // SAFETY: the view covers `out`, which nobody else uses.
                unsafe {
                    let view_out = OutView::new(out, rows);
                    kernels.linear(format).matmul(&bytes, k, rows, &view, Tokens::all(&view), view_out);
                }
            }
            let mut one = vec![0.0; rows];
            linear.matvec(&bytes, k, view.row(0), &mut one);
            let scale = truth.iter().fold(1e-6_f32, |m, x| m.max(x.abs()));
            for (a, b) in found.iter().zip(&truth).chain(one.iter().zip(&truth)) {
                assert!((a - b).abs() <= 2e-5 * scale, "{format} k={k} rows={rows} tokens={tokens}: {a} {b}");
            }
            checked += 1;
        }
    }
    println!("{checked} passed, 0 failed");
}
