//! Every level's small f32 kernels against f64 arithmetic.

use half::f16;
use rynd_quant::{Kernels, Level, Vector};

fn levels() -> Vec<(&'static str, &'static Vector)> {
    let all = [Level::Scalar, Level::Avx2, Level::Avx512, Level::Neon];
    all.into_iter().filter_map(|level| Some((level.name(), Kernels::at(level)?.vector()))).collect()
}

/// Repeatable numbers in -1..1.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

const LENGTHS: [usize; 11] = [0, 1, 7, 8, 15, 16, 17, 63, 64, 130, 896];

#[test]
fn sums_agree_with_f64_at_every_length() {
    for (name, v) in levels() {
        for len in LENGTHS {
            let (a, b) = (noise(len, 1), noise(len, 2));
            let truth: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let size: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a * b).abs()).sum();
            assert!((f64::from(v.dot(&a, &b)) - truth).abs() <= 1e-6 * size, "{name} dot of {len}");
            let max = a.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(v.max(&a), max, "{name} max of {len}");
        }
    }
}

#[test]
fn elementwise_kernels_agree_with_f64_and_touch_nothing_else() {
    for (name, v) in levels() {
        for len in LENGTHS {
            let (x, w) = (noise(len, 3), noise(len, 4));
            let mut padded = noise(len + 20, 5);
            let before = padded.clone();

            v.axpy(&mut padded[..len], 0.75, &x);
            for i in 0..len {
                let truth = f64::from(before[i]) + 0.75 * f64::from(x[i]);
                assert!((f64::from(padded[i]) - truth).abs() <= 2e-7, "{name} axpy {i} of {len}");
            }
            v.scale_mul(&mut padded[..len], &x, 3.5, &w);
            for i in 0..len {
                let truth = f64::from(x[i]) * 3.5 * f64::from(w[i]);
                assert!((f64::from(padded[i]) - truth).abs() <= 5e-7, "{name} scale_mul {i} of {len}");
            }
            v.scale(&mut padded[..len], -2.0);
            for i in 0..len {
                let truth = f64::from(x[i]) * -7.0 * f64::from(w[i]);
                assert!((f64::from(padded[i]) - truth).abs() <= 1e-6, "{name} scale {i} of {len}");
            }
            assert_eq!(padded[len..], before[len..], "{name} wrote past {len}");
        }
    }
}

#[test]
fn exponentials_are_within_three_ulp() {
    // From where e^x is subnormal up to 0: what a softmax sees; then the whole range through silu and gelu.
    let x: Vec<f32> = (0..100_000).map(|i| -87.0 * i as f32 / 99_999.0).collect();
    for (name, v) in levels() {
        let mut e = x.clone();
        let sum = v.exp_sub(&mut e, 0.0);
        let mut worst = 0f64;
        for (x, e) in x.iter().zip(&e) {
            worst = worst.max((f64::from(*e) / f64::from(*x).exp() - 1.0).abs());
        }
        assert!(worst <= 2e-7, "{name} exp is off by {worst:e}");
        let truth: f64 = x.iter().map(|x| f64::from(*x).exp()).sum();
        assert!((f64::from(sum) / truth - 1.0).abs() < 1e-5, "{name} sum {sum} is not {truth}");

        let g: Vec<f32> = noise(4099, 6).iter().map(|x| x * 120.0).collect();
        let up = noise(4099, 7);
        let mut silu = g.clone();
        v.silu_mul(&mut silu, &up);
        let mut gelu = g.clone();
        v.gelu_mul(&mut gelu, &up);
        for i in 0..g.len() {
            let (x, up) = (f64::from(g[i]), f64::from(up[i]));
            let truth = x / (1.0 + (-x).exp()) * up;
            assert!((f64::from(silu[i]) - truth).abs() <= 6e-7 * truth.abs() + 1e-36, "{name} silu({x}) {}", silu[i]);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            let truth = 0.5 * x * (1.0 + inner.tanh()) * up;
            assert!((f64::from(gelu[i]) - truth).abs() <= 3e-6 * truth.abs() + 1e-6, "{name} gelu({x}) {}", gelu[i]);
        }
    }
}

#[test]
fn a_softmax_gives_masked_places_exactly_zero() {
    for (name, v) in levels() {
        let mut x = noise(37, 8);
        x[5] = f32::NEG_INFINITY;
        x[36] = f32::NEG_INFINITY;
        v.softmax(&mut x);
        assert_eq!((x[5], x[36]), (0.0, 0.0), "{name}");
        assert!((x.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{name}");

        let mut all = [f32::NEG_INFINITY; 19];
        v.softmax(&mut all);
        assert_eq!(all, [0.0; 19], "{name}");
    }
}

#[test]
fn f16_conversion_rounds_half_to_even_like_the_half_crate() {
    let mut values: Vec<f32> =
        (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32()).filter(|v| !v.is_nan()).collect();
    let ties: Vec<f32> = values.iter().map(|v| f32::from_bits(v.to_bits() + 0x1000)).filter(|v| !v.is_nan()).collect();
    values.extend(ties);
    values.extend([1e-8, 65519.0, 65520.0, 1e10, -1e10]);
    for (name, v) in levels() {
        let mut half = vec![f16::ZERO; values.len()];
        v.f32_to_f16(&values, &mut half);
        let mut back = vec![0f32; values.len()];
        v.f16_to_f32(&half, &mut back);
        for (i, value) in values.iter().enumerate() {
            assert_eq!(half[i].to_bits(), f16::from_f32(*value).to_bits(), "{name} {value}");
            assert_eq!(back[i].to_bits(), half[i].to_f32().to_bits(), "{name} {value}");
        }
    }
}

#[test]
fn what_is_no_number_stays_none() {
    for (name, v) in levels() {
        for len in [1, 8, 17, 64] {
            for at in [0, len / 2, len - 1] {
                for bad in [f32::NAN, -f32::NAN] {
                    let mut x = noise(len, 6);
                    x[at] = bad;
                    let mut gate = x.clone();
                    v.silu_mul(&mut gate, &noise(len, 7));
                    assert!(gate[at].is_nan(), "{name} silu {at} of {len}");
                    let mut gate = x.clone();
                    v.gelu_mul(&mut gate, &noise(len, 7));
                    assert!(gate[at].is_nan(), "{name} gelu {at} of {len}");
                    v.softmax(&mut x);
                    assert!(x.iter().all(|x| x.is_nan()), "{name} softmax {at} of {len}");
                }
            }
            let mut all = vec![f32::NAN; len];
            v.softmax(&mut all);
            assert!(all.iter().all(|x| x.is_nan()), "{name} softmax of {len}");
            let mut masked = vec![f32::NEG_INFINITY; len];
            v.softmax(&mut masked);
            assert_eq!(masked, vec![0.0; len], "{name}");
        }
    }
}
