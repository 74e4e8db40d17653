//! The writer: streaming, padding, order, and files that never look whole before they are.

use rynd::gguf::{Array, Gguf, Writer};
use rynd_quant::Format;

use crate::raw::TempDir;

#[test]
fn tensor_data_streams_in_pieces_of_any_size() {
    use std::io::Write;
    let dir = TempDir::new("pieces");
    let data: Vec<u8> = (0..100u8).collect();
    for piece in [1, 7, 32, 100] {
        let path = dir.file("p.gguf");
        let mut w = Writer::create(&path).unwrap();
        w.set("general.alignment", 64u32).unwrap();
        w.declare("a", Format::F32, &[5]).unwrap();
        w.declare("b", Format::F16, &[10, 4]).unwrap();
        for chunk in data.chunks(piece) {
            w.write_all(chunk).unwrap();
        }
        assert!(w.write_all(&[0]).is_err(), "there is no tensor for this byte");
        w.finish().unwrap();
        let g = Gguf::open(&path).unwrap();
        assert_eq!(g.bytes(g.tensor("a").unwrap()), &data[..20]);
        assert_eq!(g.bytes(g.tensor("b").unwrap()), &data[20..]);
        assert_eq!((g.tensors()[1].offset - g.tensors()[0].offset, g.file_bytes() % 64), (64, 0));
    }
}

#[test]
fn an_unfinished_file_leaves_nothing_and_an_old_one_stays() {
    let dir = TempDir::new("unfinished");
    let path = dir.file("m.gguf");
    std::fs::write(&path, b"old").unwrap();
    let mut w = Writer::create(&path).unwrap();
    w.declare("a", Format::F32, &[2]).unwrap();
    w.write_tensor("a", &[0; 8]).unwrap();
    assert_eq!(dir.names().len(), 2, "the temporary file lies beside the old one");
    drop(w);
    assert_eq!((dir.names(), std::fs::read(&path).unwrap()), (vec!["m.gguf".to_owned()], b"old".to_vec()));

    let mut w = Writer::create(&path).unwrap();
    w.declare("a", Format::F32, &[2]).unwrap();
    let error = w.finish().err();
    assert!(error.unwrap().to_string().contains("tensor 'a' lacks 8 of its 8 bytes"));
    assert_eq!((dir.names(), std::fs::read(&path).unwrap()), (vec!["m.gguf".to_owned()], b"old".to_vec()));

    let mut w = Writer::create(&path).unwrap();
    w.set("k", 1u32).unwrap();
    w.finish().unwrap();
    assert_eq!(dir.names(), ["m.gguf"]);
    assert_eq!(Gguf::open(&path).unwrap().u32("k").unwrap(), 1);
}

#[test]
fn the_writer_refuses_what_no_reader_would_take() {
    let dir = TempDir::new("refuse");
    let mut w = Writer::create(&dir.file("m.gguf")).unwrap();
    assert!(w.set("general.alignment", 48u32).is_err());
    assert!(w.declare("t", Format::Q4_K, &[100]).is_err());
    assert!(w.declare("t", Format::F32, &[]).is_err());
    assert!(w.declare("t", Format::F32, &[1, 1, 1, 1, 1]).is_err());
    assert!(w.declare("t", Format::F32, &[0]).is_err());
    w.declare("t", Format::F32, &[2]).unwrap();
    w.declare("u", Format::F32, &[2]).unwrap();
    assert!(w.declare("t", Format::F32, &[2]).is_err(), "declared twice");
    assert!(w.write_tensor("u", &[0; 8]).is_err(), "out of order");
    assert!(w.write_tensor("t", &[0; 7]).is_err(), "too short");
    w.write_tensor("t", &[0; 8]).unwrap();
    assert!(w.set("late", 1u32).is_err());
    assert!(w.declare("late", Format::F32, &[2]).is_err());
    w.write_tensor("u", &[0; 8]).unwrap();
    assert!(w.write_tensor("v", &[0; 8]).is_err(), "not declared");
    w.finish().unwrap();
    assert_eq!(Gguf::open(&dir.file("m.gguf")).unwrap().tensors().len(), 2);
}

#[test]
fn gguf_rs_reads_what_the_writer_writes() {
    let dir = TempDir::new("oracle");
    let path = dir.file("m.gguf");
    let mut w = Writer::create(&path).unwrap();
    w.set("general.architecture", "llama").unwrap();
    w.set("n", -3i64).unwrap();
    w.set("list", Array::of_strings(["a", "b"])).unwrap();
    w.declare("x", Format::Q8_0, &[64, 2]).unwrap();
    w.write_tensor("x", &[1; 136]).unwrap();
    w.finish().unwrap();
    let model = gguf_rs::get_gguf_container_array_size(path.to_str().unwrap(), u64::MAX).unwrap().decode().unwrap();
    assert_eq!(model.get_version(), "v3");
    assert_eq!(model.model_family(), "llama");
    assert_eq!(model.metadata()["n"], serde_json::json!(-3));
    assert_eq!(model.metadata()["list"], serde_json::json!(["a", "b"]));
    let t = &model.tensors()[0];
    assert_eq!((t.name.as_str(), t.shape.as_slice(), t.kind, t.size), ("x", &[64, 2][..], 8, 136));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), model.data_offset() + 160);
}
