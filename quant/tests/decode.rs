//! Decoding, held against the weights that llama.cpp's own library reads from the same blocks.

use std::path::PathBuf;

use rynd_quant::Format;

fn fixture(name: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/blocks").join(name);
    match std::fs::read(&path) {
        Ok(bytes) => Some(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// The encoded blocks of a format and the weights they stand for: real weights, and random payloads where they exist.
fn cases(format: Format) -> Vec<(String, Vec<u8>, Vec<f32>)> {
    ["", ".random"]
        .iter()
        .filter_map(|kind| {
            let name = format!("{format}{kind}");
            let blocks = fixture(&format!("{name}.bin"))?;
            let weights = fixture(&format!("{name}.f32"))?;
            Some((name, blocks, floats(&weights)))
        })
        .collect()
}

#[test]
fn every_format_decodes_to_the_reference_bit_for_bit() {
    for format in Format::all() {
        let cases = cases(format);
        assert!(!cases.is_empty() || format == Format::F32, "{format}: no fixture");
        for (name, blocks, weights) in cases {
            let mut decoded = vec![f32::NAN; weights.len()];
            format.decode(&blocks, &mut decoded);
            for (i, (ours, theirs)) in decoded.iter().zip(&weights).enumerate() {
                // 0 and -0 are one weight: the reference multiplies signs in, we flip them.
                let same = ours.to_bits() == theirs.to_bits() || (*ours == 0.0 && *theirs == 0.0);
                assert!(same, "{name} weight {i}: {ours} is not {theirs}");
            }
        }
    }
}

#[test]
fn f32_passes_through_unchanged() {
    let source = fixture("source.f32").expect("source.f32");
    let mut decoded = vec![0.0; source.len() / 4];
    Format::F32.decode(&source, &mut decoded);
    assert_eq!(decoded, floats(&source));
}

#[test]
fn a_block_decodes_alike_alone_and_in_a_row() {
    for format in Format::all() {
        for (name, blocks, weights) in cases(format) {
            let mut row = vec![0.0; weights.len()];
            format.decode(&blocks, &mut row);
            let mut block = vec![0.0; format.block_len()];
            for (i, src) in blocks.chunks_exact(format.block_bytes()).enumerate() {
                format.decode(src, &mut block);
                assert_eq!(block, row[i * block.len()..][..block.len()], "{name} block {i}");
            }
        }
    }
}

#[test]
fn the_exact_dot_product_is_that_of_the_decoded_weights() {
    for format in Format::all() {
        for (name, blocks, weights) in cases(format) {
            let k = 256;
            let x: Vec<f32> = (0..k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
            let rows = blocks.chunks_exact(format.row_bytes(k).expect("256 is a multiple of every block"));
            for (i, (src, w)) in rows.zip(weights.chunks_exact(k)).enumerate() {
                let truth: f64 = w.iter().zip(&x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
                let ours = f64::from(format.dot_f32(src, &x));
                assert!((ours - truth).abs() <= 1e-6 * truth.abs().max(1e-3), "{name} row {i}: {ours} is not {truth}");
            }
        }
    }
}

#[test]
fn the_dot_product_of_an_odd_length_misses_no_weight() {
    let ones: Vec<u8> = (0..13).flat_map(|_| 1.0_f32.to_le_bytes()).collect();
    assert_eq!(Format::F32.dot_f32(&ones, &[2.0; 13]), 26.0);
}

#[test]
#[should_panic(expected = "do not hold")]
fn lengths_that_do_not_belong_together_are_refused() {
    Format::Q4_K.decode(&[0; 144], &mut [0.0; 255]);
}

#[test]
fn only_formats_with_shared_scales_count_as_quantised() {
    let plain: Vec<Format> = Format::all().filter(|format| !format.is_quantized()).collect();
    assert_eq!(plain, [Format::F32, Format::F16, Format::BF16]);
}
