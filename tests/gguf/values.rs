//! Metadata values: every type, in and out, shown and fetched.

use std::path::Path;

use rynd::gguf::{Array, Gguf, GgufError, Text, Value, ValueType, Writer};

use crate::GOLDEN;
use crate::raw::{Raw, TempDir, parse, says};

#[test]
fn every_type_of_value_is_read() {
    let scalars: [(u32, &[u8], Value); 12] = [
        (0, &[200], Value::U8(200)),
        (1, &[0xfe], Value::I8(-2)),
        (2, &[1, 2], Value::U16(513)),
        (3, &[0xff, 0xff], Value::I16(-1)),
        (4, &[0xff; 4], Value::U32(u32::MAX)),
        (5, &[0xff; 4], Value::I32(-1)),
        (6, &[0, 0, 0xc0, 0x3f], Value::F32(1.5)),
        (7, &[1], Value::Bool(true)),
        (8, b"\x02\0\0\0\0\0\0\0\xc3\xa9", Value::from("é")),
        (10, &[0xff; 8], Value::U64(u64::MAX)),
        (11, &[0xff; 8], Value::I64(-1)),
        (12, &[0, 0, 0, 0, 0, 0, 0xf8, 0x3f], Value::F64(1.5)),
    ];
    for (id, payload, value) in scalars {
        assert_eq!((ValueType::from_id(id), value.kind().id()), (Some(value.kind()), id));
        let g = parse(Raw::header(3, 0, 1).str("k").u32(id).bytes(payload).0).unwrap();
        assert_eq!(g.get("k"), Some(&value));
    }
}

#[test]
fn arrays_are_read_nested_ones_too() {
    let raw = Raw::header(3, 0, 2).str("arr").u32(9).u32(3).u64(2).bytes(&[1, 0, 0xff, 0xff]);
    let raw = raw.str("nest").u32(9).u32(9).u64(2).u32(8).u64(1).str("deep").u32(0).u64(3).bytes(&[1, 2, 3]);
    let g = parse(raw.0).unwrap();
    assert_eq!(g.array("arr").unwrap().iter().collect::<Vec<_>>(), [Value::I16(1), Value::I16(-1)]);
    let nest = g.array("nest").unwrap();
    assert_eq!((nest.item(), nest.len()), (ValueType::Array, 2));
    assert_eq!(nest.iter().next().unwrap(), Value::Array(Array::of_strings(["deep"])));
    assert_eq!(nest.iter().nth(1).unwrap(), Value::Array(Array::from(&[1u8, 2, 3][..])));
    assert_eq!(serde_json::to_string(nest).unwrap(), r#"[["deep"],[1,2,3]]"#);
}

#[test]
fn every_type_of_value_survives_writing() {
    let dir = TempDir::new("values");
    let path = dir.file("v.gguf");
    let values: Vec<Value> = vec![
        7u8.into(),
        (-7i8).into(),
        7u16.into(),
        (-7i16).into(),
        7u32.into(),
        (-7i32).into(),
        u64::MAX.into(),
        i64::MIN.into(),
        0.1f32.into(),
        0.1f64.into(),
        true.into(),
        "text".into(),
        String::new().into(),
        Value::String(Text::from(&b"\xff raw"[..])),
        Array::from(&[1u32, 2][..]).into(),
        Array::from(&[-1i64][..]).into(),
        Array::from(&[0.5f32][..]).into(),
        Array::from(&[true, false][..]).into(),
        Array::of_strings(["a", "", "ccc"]).into(),
        Array::of_arrays([Array::of_strings(["x"]), Array::from(&[0u8; 0][..])]).into(),
    ];
    let mut w = Writer::create(&path).unwrap();
    for (i, value) in values.iter().enumerate() {
        w.set(&format!("key.{i}"), value.clone()).unwrap();
    }
    w.set("key.0", 9u8).unwrap();
    w.finish().unwrap();
    let g = Gguf::open(&path).unwrap();
    assert_eq!(g.metadata().count(), values.len());
    assert_eq!(g.metadata().next().unwrap(), ("key.0", &Value::U8(9)));
    for (i, value) in values.iter().enumerate().skip(1) {
        assert_eq!(g.get(&format!("key.{i}")).unwrap(), value);
    }
}

#[test]
fn bytes_that_are_not_utf8_are_there_as_bytes_and_refused_as_text() {
    let strings = Array::of_strings([&b"ok"[..], b"\xff\xfe"]);
    let dir = TempDir::new("utf8");
    let mut w = Writer::create(&dir.file("u.gguf")).unwrap();
    w.set("tokens", strings).unwrap();
    w.set("name", Value::String(Text::from(&b"\xc3"[..]))).unwrap();
    w.finish().unwrap();
    let g = Gguf::open(&dir.file("u.gguf")).unwrap();
    assert_eq!(g.byte_strings("tokens").unwrap().collect::<Vec<_>>(), [&b"ok"[..], b"\xff\xfe"]);
    says(g.strs("tokens").err(), &["u.gguf", "'tokens'", "UTF-8"]);
    says(g.str("name").err(), &["u.gguf", "'name'", "UTF-8"]);
    let Some(Value::String(name)) = g.get("name") else { panic!("no string") };
    assert_eq!((name.as_bytes(), name.to_string_lossy().as_ref()), (&b"\xc3"[..], "\u{fffd}"));
}

#[test]
fn text_is_text_whatever_the_lengths_between_look_like() {
    // A length of 169 is the byte that would complete a character cut off before it; 200 alone is no UTF-8.
    let long = |n: usize| "x".repeat(n).into_bytes();
    let check = |strings: Vec<Vec<u8>>| {
        let array = Array::of_strings(&strings);
        let mut raw = Raw::header(3, 0, 1).str("k").u32(9).u32(8).u64(array.len() as u64);
        for s in &strings {
            raw = raw.u64(s.len() as u64).bytes(s);
        }
        let g = parse(raw.0).unwrap();
        assert_eq!(g.array("k").unwrap(), &array);
        let expected: Option<Vec<&str>> = strings.iter().map(|s| std::str::from_utf8(s).ok()).collect();
        assert_eq!(g.strs("k").ok(), expected);
    };
    check(vec!["é".into(), "Ġthe".into(), vec![], "日本".into()]);
    check(vec!["é".into(), long(200), "日本".into(), long(40_000)]);
    check(vec![b"a\xc3".to_vec(), long(169)]);
    check(vec![long(3), b"\xa9".to_vec()]);
}

#[test]
fn getters_tell_absent_from_wrong() {
    let g = Gguf::open(Path::new(GOLDEN)).unwrap();
    assert_eq!(g.opt_u32("qwen2.expert_count").unwrap(), None);
    assert_eq!(g.opt_strs("no.such").unwrap(), None);
    says(g.u32("qwen2.expert_count").err(), &["qwen2-Q4_K_M.gguf", "'qwen2.expert_count' is missing"]);
    assert!(matches!(g.u32("qwen2.expert_count"), Err(GgufError::MissingKey { .. })));
    says(g.opt_u32("general.name").err(), &["'general.name'", "an integer", "\"Qwen2\" (string)"]);
    assert!(matches!(g.opt_f32("qwen2.block_count"), Err(GgufError::WrongType { .. })), "an integer is no float");
    assert!(matches!(g.u32("qwen2.rope.freq_base"), Err(GgufError::WrongType { .. })), "a float is no integer");
    assert!(matches!(g.strs("tokenizer.ggml.token_type"), Err(GgufError::WrongType { .. })));
    says(g.u32s("tokenizer.ggml.tokens").err(), &["an array of integers", "512 x string"]);
    assert_eq!(g.u64("general.file_type").unwrap(), 15);
}

#[test]
fn integers_of_any_width_are_taken_when_they_fit() {
    let raw = Raw::header(3, 0, 3).str("wide").u32(10).u64(7).str("big").u32(10).u64(1 << 32);
    let raw = raw.str("negative").u32(5).u32(u32::MAX);
    let g = parse(raw.0).unwrap();
    assert_eq!(g.u32("wide").unwrap(), 7);
    assert!(g.u32("big").is_err());
    assert_eq!(g.u64("big").unwrap(), 1 << 32);
    assert!(g.u32("negative").is_err());
    assert_eq!(g.i64("negative").unwrap(), -1);
}

#[test]
fn long_values_are_shown_short() {
    let g = Gguf::open(Path::new(GOLDEN)).unwrap();
    let shown = g.get("tokenizer.ggml.tokens").unwrap().to_string();
    assert_eq!(shown, r##"512 x string ["!", "\"", "#", "$", "%", "&", "'", "(", ...]"##);
    let template = g.get("tokenizer.chat_template").unwrap().to_string();
    assert!(template.chars().count() < 120 && template.ends_with("bytes)"), "{template}");
}
