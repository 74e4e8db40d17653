//! Encoding, held against llama.cpp's encoding of the same weights, and against what bad or odd input may do.

use std::path::PathBuf;

use rynd_quant::{EncodeError, Format};

const K: usize = 256;

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/blocks").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn floats(name: &str) -> Vec<f32> {
    fixture(name).as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn encoders() -> impl Iterator<Item = Format> {
    Format::all().filter(|format| format.has_encoder())
}

/// Encodes rows of K and decodes them again.
fn round_trip(format: Format, x: &[f32], importance: Option<&[f32]>) -> Vec<f32> {
    let mut blocks = vec![0xa5; x.len() / K * format.row_bytes(K).unwrap_or_default()];
    format.encode(x, K, &mut blocks, importance).unwrap_or_else(|error| panic!("{format}: {error}"));
    let mut y = vec![f32::NAN; x.len()];
    format.decode(&blocks, &mut y);
    y
}

/// Root of the mean squared error, every column weighted.
fn rmse(x: &[f32], y: &[f32], importance: Option<&[f32]>) -> f64 {
    let square = |(i, (&x, &y)): (usize, (&f32, &f32))| {
        importance.map_or(1.0, |q| f64::from(q[i % K])) * (f64::from(x) - f64::from(y)).powi(2)
    };
    (x.iter().zip(y).enumerate().map(square).sum::<f64>() / x.len() as f64).sqrt()
}

#[test]
fn every_format_is_as_near_to_the_source_as_the_reference_encoder() {
    let source = floats("source.f32");
    let imatrix = floats("imatrix.f32");
    for format in encoders().filter(|&format| format != Format::F32) {
        // The reference refuses these two without an importance matrix.
        let importance = matches!(format, Format::IQ2_XXS | Format::IQ2_XS).then_some(&imatrix[..]);
        let theirs = rmse(&source, &floats(&format!("{format}.f32")), importance);
        let ours = rmse(&source, &round_trip(format, &source, importance), importance);
        assert!(ours <= 1.005 * theirs, "{format}: {ours:e} is above {theirs:e}, ratio {:.4}", ours / theirs);
    }
}

#[test]
fn plain_formats_hold_the_reference_bytes() {
    let source = floats("source.f32");
    for (format, file) in [(Format::F32, "source.f32"), (Format::F16, "F16.bin"), (Format::BF16, "BF16.bin")] {
        let expected = fixture(file);
        let mut ours = vec![0; expected.len()];
        format.encode(&source, K, &mut ours, None).unwrap();
        assert!(ours == expected, "{format} differs from {file}");
    }
}

#[test]
fn importance_lowers_the_error_that_it_weighs() {
    let source = floats("source.f32");
    let importance: Vec<f32> = (0..K).map(|i| if i % 7 == 0 { 50.0 } else { 0.5 + (i % 5) as f32 }).collect();
    for format in encoders().filter(|format| format.is_quantized() && *format != Format::Q8_0) {
        let with = rmse(&source, &round_trip(format, &source, Some(&importance)), Some(&importance));
        let without = rmse(&source, &round_trip(format, &source, None), Some(&importance));
        assert!(with < without, "{format}: {with:e} with importance, {without:e} without");
    }
}

#[test]
fn columns_without_importance_are_still_encoded() {
    let source = floats("source.f32");
    let scale = rmse(&source, &vec![0.0; source.len()], None);
    let mut half = vec![1.0; K];
    half[K / 2..].fill(0.0);
    for importance in [vec![0.0; K], half] {
        for format in encoders().filter(|format| format.is_quantized()) {
            let error = rmse(&source, &round_trip(format, &source, Some(&importance)), None);
            assert!(error < 0.6 * scale, "{format}: error {error:e} of {scale:e}");
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for format in encoders() {
        let y = round_trip(format, &[0.0; 2 * K], None);
        assert!(y.iter().all(|&y| y == 0.0), "{format}");
    }
}

#[test]
fn a_block_of_zeros_spoils_none_of_its_neighbours() {
    let source = floats("source.f32");
    for format in encoders().filter(|format| format.is_quantized()) {
        let normal = rmse(&source, &round_trip(format, &source, None), None);
        for zeros in 0..K / 32 {
            let mut x = source[..K].to_vec();
            x[zeros * 32..][..32].fill(0.0);
            let error = rmse(&x, &round_trip(format, &x, None), None);
            assert!(error < 1.5 * normal, "{format}, zeros in group {zeros}: {error:e}, usually {normal:e}");
        }
    }
}

#[test]
fn outliers_and_constant_rows_do_not_blow_up() {
    let constant = vec![0.25; K];
    let negative = vec![-0.25; K];
    let mut outlier = floats("source.f32")[..K].to_vec();
    outlier[77] = 100.0;
    for format in encoders() {
        // An outlier raises all that share its scale; with few bits, nearly as much as dropping it would cost.
        let outlier_bound = if format.bits_per_weight() > 4.0 { 0.6 } else { 100.0 / 16.0 };
        for (name, x, bound) in
            [("constant", &constant, 0.1), ("negative", &negative, 0.1), ("outlier", &outlier, outlier_bound)]
        {
            let y = round_trip(format, x, None);
            let error = rmse(x, &y, None);
            assert!(error < bound, "{format}, {name}: {error}");
        }
    }
}

#[test]
fn tiny_and_huge_weights_keep_their_relative_precision() {
    let source = floats("source.f32");
    let largest = source.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
    for format in encoders().filter(|format| format.is_quantized()) {
        let normal = rmse(&source, &round_trip(format, &source, None), None);
        for factor in [1e-2, 60000.0 / largest] {
            let x: Vec<f32> = source.iter().map(|x| x * factor).collect();
            let error = rmse(&x, &round_trip(format, &x, None), None) / f64::from(factor);
            // Scales of tiny weights are subnormal f16 numbers, so they lose digits.
            assert!(error < 1.5 * normal, "{format}, times {factor}: {error:e}, usually {normal:e}");
        }
    }
}

#[test]
fn rows_do_not_depend_on_each_other() {
    let source = floats("source.f32");
    let imatrix = floats("imatrix.f32");
    for format in encoders() {
        let row_bytes = format.row_bytes(K).unwrap();
        let mut together = vec![0; 8 * row_bytes];
        format.encode(&source, K, &mut together, Some(&imatrix)).unwrap();
        for (row, expected) in source.chunks(K).zip(together.chunks(row_bytes)) {
            let mut alone = vec![0; row_bytes];
            format.encode(row, K, &mut alone, Some(&imatrix)).unwrap();
            assert!(alone == expected, "{format}");
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for format in encoders() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 10 * K];
            x[2049] = bad;
            let mut blocks = vec![0; 10 * format.row_bytes(K).unwrap()];
            match format.encode(&x, K, &mut blocks, None) {
                Err(EncodeError::NotFinite { index: 2049, .. }) => {}
                other => panic!("{format}: {other:?}"),
            }
        }
    }
}

#[test]
fn weights_beyond_the_scale_are_refused() {
    let mut x = vec![1.0; K];
    x[3] = -1e5;
    let mut blocks = vec![0; 144];
    let refused = Format::Q4_K.encode(&x, K, &mut blocks, None);
    assert!(matches!(refused, Err(EncodeError::TooLarge { index: 3, .. })), "{refused:?}");
    assert!(round_trip(Format::BF16, &x, None)[3] < -9e4);
}

#[test]
fn importance_must_be_a_number_and_not_negative() {
    for bad in [-1.0, f32::NAN, f32::INFINITY] {
        let mut importance = vec![1.0; K];
        importance[5] = bad;
        let refused = Format::Q4_K.encode(&[1.0; K], K, &mut [0; 144], Some(&importance));
        assert!(matches!(refused, Err(EncodeError::BadImportance { column: 5, .. })), "{refused:?}");
    }
}

#[test]
fn formats_without_an_encoder_say_so() {
    let without: Vec<Format> = Format::all().filter(|format| !format.has_encoder()).collect();
    use Format::*;
    assert_eq!(without, [Q8_K, IQ1_S, IQ1_M, TQ1_0, TQ2_0, NVFP4]);
    for format in without {
        let mut blocks = vec![0; format.row_bytes(K).unwrap()];
        assert_eq!(format.encode(&[1.0; K], K, &mut blocks, None), Err(EncodeError::NoEncoder(format)));
    }
}
