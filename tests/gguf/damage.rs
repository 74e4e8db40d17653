//! Damaged and impossible files: each is one error that names file, place and next step.

use rynd::gguf::{Gguf, GgufError};
use rynd_quant::Format;

use crate::GOLDEN;
use crate::raw::{Raw, TempDir, fails, parse, says};

#[test]
fn what_is_not_gguf_is_named_for_what_it_is() {
    fails(b"GG".to_vec(), &["not a GGUF file", "shorter than 4 bytes"]);
    fails(b"GGUF\x03".to_vec(), &["ends before its version"]);
    fails(b"version https://git-lfs.github.com/spec/v1\n".to_vec(), &["Git LFS pointer"]);
    fails(b"<!doctype html>".to_vec(), &["web page"]);
    fails(b"PK\x03\x04....".to_vec(), &["ZIP"]);
    fails(b"tjgg\x03\0\0\0".to_vec(), &["before GGUF"]);
    fails(b"\x7fELF....".to_vec(), &["does not start with 'GGUF'"]);
}

#[test]
fn versions_and_byte_orders_that_are_not_read_are_named() {
    fails(Raw::header(1, 0, 0).0, &["version 1 is not supported", "convert"]);
    fails(Raw::header(4, 0, 0).0, &["version 4 is not supported", "update rynd"]);
    fails(Raw::header(3u32.swap_bytes(), 0, 0).0, &["big-endian"]);
    fails([&b"FUGG"[..], &[0, 0, 0, 3]].concat(), &["big-endian"]);
}

#[test]
fn counts_that_cannot_be_are_refused_before_anything_is_reserved() {
    fails(Raw::header(3, u64::MAX, 0).0, &["byte 8", "18446744073709551615 tensors", "24 bytes"]);
    fails(Raw::header(3, 0, 1 << 40).0, &["byte 16", "1099511627776 metadata keys"]);
    let many = Raw::header(3, 0, 1 << 17).bytes(&vec![0; 13 << 17]);
    fails(many.0, &["byte 16", "131072 metadata keys", "at most 65536"]);
    // 2^61 x 8 bytes overflows 64 bits.
    fails(Raw::header(3, 0, 1).str("k").u32(9).u32(10).u64(1 << 61).u64(0).0, &["'k'", "byte 41", "an array"]);
    fails(Raw::header(3, 0, 1).str("k").u32(9).u32(8).u64(1 << 61).u64(0).0, &["'k'", "2305843009213693952 x string"]);
    fails(Raw::header(3, 0, 1).str("k").u32(8).u64(u64::MAX).0, &["'k'", "a string needs 18446744073709551615 bytes"]);
    fails(Raw::header(3, 0, 1).u64(1 << 62).bytes(&[0; 20]).0, &["byte 24", "metadata key 0 of 1"]);
}

#[test]
fn a_header_cut_anywhere_is_an_error_with_a_place() {
    let whole = std::fs::read(GOLDEN).unwrap();
    let header_end = 13_472;
    let cuts = (0..900).chain((900..header_end).step_by(37)).chain(header_end - 60..header_end - 20);
    for cut in cuts {
        let error = parse(&whole[..cut]).expect_err("a cut header must be refused");
        let placed = match &error {
            GgufError::NotGguf { .. } => cut < 8,
            GgufError::Header { offset, .. } => *offset <= cut as u64,
            GgufError::Truncated { .. } => cut > header_end - 32,
            _ => false,
        };
        assert!(placed, "cut at {cut}: {error}");
    }
}

#[test]
fn truncated_data_names_the_tensor_and_both_sizes() {
    let whole = std::fs::read(GOLDEN).unwrap();
    let error = parse(&whole[..640_000]).err();
    says(error, &["truncated", "'blk.1.ffn_up.weight'", "671648", "640000", "download it again"]);
    // The padding behind the last tensor may be missing; its last byte may not.
    let raw = Raw::header(3, 1, 0).tensor("t", &[3], 0, 0);
    assert!(parse(raw.clone().data(12)).is_ok());
    fails(raw.data(11), &["truncated", "'t'"]);
}

#[test]
fn unknown_types_are_named_with_what_is_read_instead() {
    let with = |kind| Raw::header(3, 1, 0).tensor("blk.0.w", &[32], kind, 0).data(4096);
    for kind in [4, 9, 24, 26, 31, 36, 41, 1000, u32::MAX] {
        fails(with(kind), &["'blk.0.w'", &format!("type id {kind}"), "Q4_K (12)", "NVFP4 (40)", "byte 24"]);
    }
    fails(with(26), &["type id 26 (I32)"]);
    let nvfp4 = Raw::header(3, 1, 0).tensor("w", &[64], 40, 0).data(36);
    assert_eq!(parse(nvfp4).unwrap().tensors()[0].format, Format::NVFP4);
    fails(Raw::header(3, 0, 1).str("k").u32(13).u64(0).0, &["'k'", "unknown value type 13"]);
    fails(Raw::header(3, 0, 1).str("k").u32(9).u32(99).u64(0).0, &["'k'", "unknown type 99"]);
}

#[test]
fn sizes_come_from_the_block_formats() {
    // 256-blocks, 32-blocks above id 9 and plain types.
    for (kind, k, bytes) in [(12, 256, 144), (20, 32, 18), (30, 1, 2), (39, 32, 17), (8, 32, 34), (0, 5, 20)] {
        let raw = Raw::header(3, 1, 0).tensor("t", &[k, 3], kind, 0);
        assert_eq!(parse(raw.clone().data(bytes * 3)).unwrap().tensors()[0].bytes, bytes * 3);
        assert!(parse(raw.data(bytes * 3 - 1)).is_err());
    }
}

#[test]
fn impossible_shapes_are_refused() {
    let with = |shape: &[u64]| Raw::header(3, 1, 0).tensor("t", shape, 12, 0).data(4096);
    fails(with(&[]), &["'t' has 0 dimensions"]);
    fails(with(&[256, 1, 1, 1, 1]), &["'t' has 5 dimensions"]);
    fails(with(&[256, 0]), &["'t'", "empty dimension"]);
    fails(with(&[100]), &["'t'", "rows of 100 weights", "Q4_K blocks of 256"]);
    fails(with(&[1 << 40, 1 << 40]), &["'t'", "overflows"]);
    fails(with(&[256, 1 << 62]), &["'t'", "overflows"]);
    fails(with(&[u64::MAX - 255]), &["'t'"]);
}

#[test]
fn tensors_that_overlap_or_leave_the_file_are_refused() {
    let two = |a, b| Raw::header(3, 2, 0).tensor("a", &[16], 0, a).tensor("b", &[16], 0, b).data(128);
    assert!(parse(two(0, 64)).is_ok());
    assert!(parse(two(64, 0)).is_ok(), "tensors may lie in any order");
    fails(two(0, 32), &["'b' starts at byte", "inside tensor 'a'"]);
    fails(two(32, 0), &["'a' starts at byte", "inside tensor 'b'"]);
    fails(two(0, 0), &["inside tensor"]);
    fails(two(0, 96), &["truncated", "'b'"]);
    fails(two(0, 63), &["'b'", "offset 63", "alignment 32"]);
    fails(two(0, u64::MAX - 31), &["'b'"]);
    fails(two(0, i64::MAX as u64 - 31), &["'b'"]);
}

#[test]
fn names_and_keys_that_occur_twice_are_refused() {
    let tensors = Raw::header(3, 2, 0).tensor("a", &[8], 0, 0).tensor("a", &[8], 0, 32);
    fails(tensors.data(64), &["'a' is there twice"]);
    fails(Raw::header(3, 0, 2).key_u32("k", 1).key_u32("k", 1).0, &["'k'", "twice", "byte 41"]);
}

#[test]
fn names_must_be_text_of_sane_length() {
    fails(Raw::header(3, 0, 1).u64(2).bytes(b"\xff\xff").u32(4).u32(0).0, &["byte 24", "not UTF-8"]);
    fails(Raw::header(3, 0, 1).key_u32("\x1b[2J", 0).0, &["byte 24", "control characters", "\\u{1b}[2J"]);
    let long = "x".repeat(1 << 16);
    fails(Raw::header(3, 0, 1).key_u32(&long, 0).0, &["byte 24", "65536 bytes"]);
}

#[test]
fn alignment_is_honoured_and_checked() {
    let with = |n: u32| Raw::header(3, 1, 1).key_u32("general.alignment", n).tensor("t", &[2], 0, 0);
    let g = parse(with(128).data(256)).unwrap();
    assert_eq!(g.tensors()[0].offset % 128, 0);
    for n in [0, 1, 4, 48, 1 << 31] {
        fails(with(n).data(64), &["'general.alignment'", &format!("is {n},"), "power of two"]);
    }
    fails(Raw::header(3, 0, 1).str("general.alignment").u32(8).str("32").0, &["'general.alignment'"]);
}

#[test]
fn arrays_nested_without_end_do_not_exhaust_the_stack() {
    let mut raw = Raw::header(3, 0, 1).str("k").u32(9);
    for _ in 0..100_000 {
        raw = raw.u32(9).u64(1);
    }
    fails(raw.0, &["'k'", "nested more than 8 deep"]);
}

#[test]
fn paths_that_are_no_file_are_errors_with_the_path() {
    let dir = TempDir::new("paths");
    says(Gguf::open(&dir.file("none.gguf")).err(), &["none.gguf", "cannot open"]);
    says(Gguf::open(&dir.0).err(), &["it is a folder"]);
    std::fs::write(dir.file("empty.gguf"), b"").unwrap();
    says(Gguf::open(&dir.file("empty.gguf")).err(), &["empty.gguf", "shorter than 4 bytes"]);
}
