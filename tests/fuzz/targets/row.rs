//! One row to each format and back: whatever the weights, blocks come out, and numbers of numbers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rynd_quant::Format;

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let formats: Vec<Format> = Format::all().filter(|format| format.has_encoder()).collect();
    let format = formats[usize::from(first) % formats.len()];
    let row: Vec<f32> = rest.chunks_exact(4).take(256).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let Some(bytes) = format.row_bytes(row.len()).filter(|_| row.len() == 256) else { return };
    let (mut blocks, mut back) = (vec![0; bytes], vec![0.0; row.len()]);
    let finite = row.iter().all(|x| x.is_finite() && x.abs() < 1e4);
    // Some formats refuse to guess which columns matter.
    if format.encode(&row, row.len(), &mut blocks, None).is_err() {
        return;
    }
    format.decode(&blocks, &mut back);
    assert!(!finite || back.iter().all(|x| x.is_finite()), "{format:?} made no number of numbers");
});
