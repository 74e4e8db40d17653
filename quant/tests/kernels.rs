//! Matrix products: the scalar truth against decoded weights in f64, and every other level against the scalar truth.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::PathBuf;

use rynd_quant::{ActKind, ActView, Acts, Format, Kernels, Level, Linear, OutView, Tokens};

/// Repeatable randomness.
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() >> 33) as usize % n
    }

    /// Roughly normal, with an outlier now and then, as activations are.
    fn activations(&mut self, len: usize) -> Vec<f32> {
        let mut unit = || (self.bits() >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        (0..len).map(|i| (unit() + unit() + unit()) * if i % 97 == 0 { 8.0 } else { 1.0 }).collect()
    }
}

/// Blocks that another implementation encoded, and blocks of random bytes with sane scales.
fn blocks(format: Format) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/blocks");
    let mut all = Vec::new();
    for name in [format!("{format}.bin"), format!("{format}.random.bin")] {
        match std::fs::read(folder.join(&name)) {
            Ok(bytes) => all.extend(bytes),
            Err(_) if format == Format::F32 => {}
            Err(error) => assert!(name.contains("random"), "{name}: {error}"),
        }
    }
    if format == Format::F32 {
        all.extend(std::fs::read(folder.join("source.f32")).expect("source.f32"));
    }
    all
}

/// Rows of blocks drawn from the fixtures, (n, k).
fn rows(format: Format, n: usize, k: usize, noise: &mut Noise) -> Vec<u8> {
    let blocks = blocks(format);
    let blocks: Vec<&[u8]> = blocks.chunks_exact(format.block_bytes()).collect();
    (0..n * k / format.block_len()).flat_map(|_| blocks[noise.below(blocks.len())].iter().copied()).collect()
}

/// Products with the int8 (or f32) activations that `linear` asks for, (slots, n).
fn product(linear: &Linear, rows: &[u8], n: usize, k: usize, x: &[f32], tokens: Tokens<'_>) -> Vec<f32> {
    let mut acts = Acts::default();
    let view = match linear.act() {
        ActKind::F32 => ActView::f32(x, k),
        kind => acts.quantise(kind, k, x),
    };
    // A stride of more than n, with a mark between the rows.
    let stride = n + 3;
    let mut out = vec![7e7f32; tokens.len() * stride];
    let into = OutView::new(&mut out, stride);
    // SAFETY: `out` is alive and used by nobody else.
    unsafe { linear.matmul(rows, k, n, &view, tokens, into) };
    for gap in out.chunks_exact(stride).map(|row| &row[n..]) {
        assert_eq!(gap, [7e7; 3], "{} wrote past its rows", linear.format());
    }
    out.chunks_exact(stride).flat_map(|row| row[..n].iter().copied()).collect()
}

/// The levels of this architecture; those that the machine does not run are named, past the harness's capture.
fn other_levels() -> Vec<&'static Kernels> {
    let levels: &[Level] = if cfg!(target_arch = "aarch64") { &[Level::Neon] } else { &[Level::Avx2, Level::Avx512] };
    for level in levels.iter().filter(|level| !level.available()) {
        let _ = writeln!(std::io::stderr(), "SKIPPED: this machine does not run the kernels of {}", level.name());
    }
    levels.iter().filter_map(|level| Kernels::at(*level)).collect()
}

fn scalar() -> &'static Kernels {
    Kernels::at(Level::Scalar).expect("the scalar level is always there")
}

/// The same sums in another order: 2^-24 a step of the magnitudes that are summed.
fn assert_close(got: &[f32], want: &[f32], sizes: &[f32], what: &str) {
    assert_eq!(got.len(), want.len());
    for (i, ((got, want), size)) in got.iter().zip(want).zip(sizes).enumerate() {
        assert!((got - want).abs() <= 3e-6 * size + 1e-30, "{what}: value {i} is {got}, not {want} (of {size})");
    }
}

/// For each product, the sum of the magnitudes of its terms, (slots, n).
fn sizes(format: Format, rows: &[u8], n: usize, k: usize, x: &[f32], tokens: Tokens<'_>) -> Vec<f32> {
    let weights: Vec<f32> = decode(format, rows, n * k);
    (0..tokens.len())
        .flat_map(|slot| {
            let x = &x[tokens.token(slot) * k..][..k];
            weights.chunks_exact(k).map(|w| w.iter().zip(x).map(|(w, x)| (w * x).abs()).sum()).collect::<Vec<f32>>()
        })
        .collect()
}

fn decode(format: Format, rows: &[u8], values: usize) -> Vec<f32> {
    let mut weights = vec![0f32; values];
    format.decode(rows, &mut weights);
    weights
}

/// Lengths of rows that a format can have: one block, three, and those of real models.
fn depths(format: Format) -> Vec<usize> {
    let len = format.block_len().max(32);
    [len, 3 * len, 896, 1536, 8960].into_iter().filter(|k| k % len == 0).collect()
}

#[test]
fn exact_products_equal_decoded_weights_times_f32() {
    let mut noise = Noise(11);
    for format in Format::all() {
        for k in depths(format) {
            let (n, t) = (5, 3);
            let (rows, x) = (rows(format, n, k, &mut noise), noise.activations(t * k));
            let weights = decode(format, &rows, n * k);
            let tokens = Tokens::Range(0, t);
            let sizes = sizes(format, &rows, n, k, &x, tokens);
            let truth: Vec<f32> = x
                .chunks_exact(k)
                .flat_map(|x| {
                    let dot = |w: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
                    weights.chunks_exact(k).map(|w| dot(w) as f32).collect::<Vec<f32>>()
                })
                .collect();
            for kernels in [vec![scalar()], other_levels()].concat() {
                let got = product(kernels.exact(format), &rows, n, k, &x, tokens);
                assert_close(&got, &truth, &sizes, &format!("{} exact {format} k={k}", kernels.level().name()));
            }
        }
    }
}

#[test]
fn int8_products_differ_from_exact_ones_by_the_rounding_of_activations_only() {
    let mut noise = Noise(12);
    for format in Format::all() {
        let linear = scalar().linear(format);
        for k in depths(format) {
            let (n, t) = (4, 2);
            let (rows, x) = (rows(format, n, k, &mut noise), noise.activations(t * k));
            let tokens = Tokens::Range(0, t);
            let exact = product(scalar().exact(format), &rows, n, k, &x, tokens);
            let got = product(linear, &rows, n, k, &x, tokens);
            let weights = decode(format, &rows, n * k);
            let sizes = sizes(format, &rows, n, k, &x, tokens);
            for slot in 0..t {
                for row in 0..n {
                    let i = slot * n + row;
                    // Each activation is off by at most half a step: d / 2 = amax / 254 of its block.
                    let len = linear.act().block_len();
                    let bound: f32 = if linear.act() == ActKind::F32 {
                        0.0
                    } else {
                        let blocks =
                            x[slot * k..][..k].chunks_exact(len).zip(weights[row * k..][..k].chunks_exact(len));
                        blocks.map(|(x, w)| max_abs(x) / 254.0 * w.iter().map(|w| w.abs()).sum::<f32>()).sum()
                    };
                    let off = (got[i] - exact[i]).abs();
                    assert!(off <= bound * 1.001 + 3e-6 * sizes[i], "{format} k={k}: off by {off}, at most {bound}");
                }
            }
        }
    }
}

fn max_abs(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max, x| x.abs().max(max))
}

#[test]
fn every_level_equals_the_scalar_truth_at_awkward_sizes() {
    let mut noise = Noise(13);
    for kernels in other_levels() {
        for format in Format::all() {
            let small = depths(format)[1];
            let tokens = [1, 2, 3, 5, 6, 7, 11, 12, 13, 31, 64, 100];
            let sizes = tokens.map(|t| (17, t, small));
            let rows = [1, 15, 16, 31, 32, 33, 65, 130].map(|n| (n, 7, small));
            let long = depths(format).into_iter().flat_map(|k| [(33, 7, k), (33, 1, k)]);
            for (n, t, k) in sizes.into_iter().chain(rows).chain(long) {
                let (level, sizes) = (kernels.level().name(), [n, t, k]);
                check(level, kernels.linear(format), scalar().linear(format), sizes, &mut noise);
                for (design, linear) in kernels.designs(format) {
                    let by = format!("{level} {}", design.name());
                    check(&by, &linear, scalar().linear(format), sizes, &mut noise);
                }
                if t < 20 && k < 2000 {
                    check(level, kernels.exact(format), scalar().exact(format), sizes, &mut noise);
                }
            }
        }
    }
}

/// Where a block has its f16 factors.
fn factors(format: Format) -> &'static [usize] {
    match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::Q6_K => &[208],
        Format::TQ2_0 => &[64],
        _ => &[0],
    }
}

#[test]
fn no_sum_leaves_its_integers_when_weights_and_activations_are_at_their_extremes() {
    let (n, t) = (17, 7);
    for kernels in other_levels() {
        for format in Format::all().filter(|format| scalar().linear(*format).act() != ActKind::F32) {
            let k = 2 * format.block_len().max(32);
            for fill in [0x00, 0x7f, 0x80, 0xff] {
                let mut block = vec![fill; format.block_bytes()];
                // f16 1.0, or the exponent of 1.0 in one byte.
                match format {
                    Format::MXFP4 => block[0] = 127,
                    _ => factors(format).iter().for_each(|at| block[*at..at + 2].copy_from_slice(&[0x00, 0x3c])),
                }
                let rows = block.repeat(n * k / format.block_len());
                for signs in [[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]] {
                    let x: Vec<f32> = (0..t * k).map(|i| signs[i % 2]).collect();
                    let tokens = Tokens::Range(0, t);
                    let sizes = sizes(format, &rows, n, k, &x, tokens);
                    let want = product(scalar().linear(format), &rows, n, k, &x, tokens);
                    for (design, linear) in kernels.designs(format) {
                        let got = product(&linear, &rows, n, k, &x, tokens);
                        let by = format!("{} {}", kernels.level().name(), design.name());
                        assert_close(&got, &want, &sizes, &format!("{by} {format} of {fill:#x} times {signs:?}"));
                    }
                }
            }
        }
    }
}

fn check(by: &str, linear: &Linear, truth: &Linear, [n, t, k]: [usize; 3], noise: &mut Noise) {
    let format = linear.format();
    let what = format!("{by} {format} {n} rows x {t} tokens x {k}");
    assert_eq!(linear.act(), truth.act(), "{what}");
    let (rows, x) = (rows(format, n, k, noise), noise.activations(t * k));
    let all = Tokens::Range(0, t);
    let sizes = sizes(format, &rows, n, k, &x, all);
    let want = product(truth, &rows, n, k, &x, all);
    assert_close(&product(linear, &rows, n, k, &x, all), &want, &sizes, &what);

    // A gathered list in any order, tokens repeated, gives the same values.
    let list: Vec<u32> = (0..t.div_ceil(2)).map(|_| noise.below(t) as u32).collect();
    let gathered = product(linear, &rows, n, k, &x, Tokens::List(&list));
    let pick = |of: &[f32]| -> Vec<f32> { list.iter().flat_map(|t| of[*t as usize * n..][..n].to_vec()).collect() };
    assert_close(&gathered, &pick(&want), &pick(&sizes), &format!("{what}, gathered"));

    // One token by itself.
    let mut acts = Acts::default();
    let view = match linear.act() {
        ActKind::F32 => ActView::f32(&x, k),
        kind => acts.quantise(kind, k, &x),
    };
    let mut out = vec![0f32; n];
    linear.matvec(&rows, k, view.row(t - 1), &mut out);
    assert_close(&out, &want[(t - 1) * n..], &sizes[(t - 1) * n..], &format!("{what}, matvec"));
}

#[test]
fn every_level_quantises_to_the_same_integers() {
    let mut noise = Noise(14);
    let k = 1536;
    let mut x = noise.activations(3 * k);
    x[..256].fill(0.0);
    x[300..340].fill(1e-38);
    // Ties: with amax 127 the step is 1, and halves must go to the even neighbour.
    x[512] = 127.0;
    for i in 513..768 {
        x[i] = (i % 250) as f32 - 124.5;
    }
    for kind in [ActKind::Q8_0, ActKind::Q8_K] {
        let mut truth = Acts::default();
        let truth = truth.quantise_at(scalar(), kind, k, &x);
        for kernels in other_levels() {
            let mut acts = Acts::default();
            let acts = acts.quantise_at(kernels, kind, k, &x);
            assert!(acts == truth, "{} {kind:?} differs", kernels.level().name());
        }
    }
}

#[test]
#[should_panic(expected = "no whole blocks")]
fn a_row_that_is_no_whole_number_of_blocks_is_refused() {
    let x = [0f32; 100];
    scalar().linear(Format::Q4_K).matvec(&[0; 144], 100, ActView::f32(&x, 100).row(0), &mut [0.0]);
}

#[test]
#[should_panic(expected = "activations for Q4_K")]
fn activations_of_the_wrong_kind_are_refused() {
    let x = [0f32; 256];
    scalar().linear(Format::Q4_K).matvec(&[0; 144], 256, ActView::f32(&x, 256).row(0), &mut [0.0]);
}

#[test]
fn an_activation_that_is_no_number_makes_every_product_of_its_token_none() {
    let mut noise = Noise(23);
    for format in Format::all() {
        let (k, n, t) = (3 * format.block_len().max(256), 7, 3);
        let rows = rows(format, n, k, &mut noise);
        for level in [scalar()].into_iter().chain(other_levels()) {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = noise.activations(t * k);
                x[k + noise.below(k)] = bad;
                for linear in [level.linear(format), level.exact(format)] {
                    let out = product(linear, &rows, n, k, &x, Tokens::Range(0, t));
                    for (at, y) in out.iter().enumerate() {
                        assert_eq!(y.is_finite(), at / n != 1, "{format} {}: {bad} gives {y}", level.level().name());
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "do not fit")]
fn a_stride_whose_product_leaves_the_address_space_is_no_output() {
    let x = [1.0_f32; 3];
    let mut out = [0.0_f32; 8];
    // Two strides are 2 again, modulo 2^64.
    let into = OutView::new(&mut out, usize::MAX / 2 + 2);
    // SAFETY: `out` is alive and used by nobody else; the check is what is tested.
    unsafe {
        scalar().exact(Format::F32).matmul(
            &1.0_f32.to_le_bytes(),
            1,
            1,
            &ActView::f32(&x, 1),
            Tokens::Range(0, 3),
            into,
        );
    }
}
