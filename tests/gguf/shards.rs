//! Split models: opened by any shard; shards that are missing, mixed up or renamed.

use std::path::PathBuf;

use rynd::gguf::{Gguf, GgufError, Writer, shard_path};
use rynd_quant::Format;

use crate::raw::{TempDir, says};

/// Writes three shards; the second one holds tensors "b" and "c".
fn write_shards(dir: &TempDir, edit: impl Fn(u32, &mut Writer)) -> Vec<PathBuf> {
    let names: [&[&str]; 3] = [&["a"], &["b", "c"], &["d"]];
    let mut paths = vec![];
    for no in 1..=3 {
        let path = shard_path(&dir.file("big model.gguf"), no, 3);
        let mut w = Writer::create(&path).unwrap();
        if no == 1 {
            w.set("general.name", "split").unwrap();
        }
        w.set("split.no", (no - 1) as u16).unwrap();
        w.set("split.count", 3u16).unwrap();
        w.set("split.tensors.count", 4i32).unwrap();
        edit(no, &mut w);
        let names = names[no as usize - 1];
        for name in names {
            w.declare(name, Format::F32, &[2]).unwrap();
        }
        for name in names {
            w.write_tensor(name, &[name.as_bytes()[0]; 8]).unwrap();
        }
        w.finish().unwrap();
        paths.push(path);
    }
    paths
}

#[test]
fn any_shard_opens_the_whole_model() {
    let dir = TempDir::new("shards");
    let paths = write_shards(&dir, |_, _| {});
    assert_eq!(paths[1], dir.file("big model-00002-of-00003.gguf"));
    for path in &paths {
        let g = Gguf::open(path).unwrap();
        assert_eq!((g.path(), g.shards()), (paths[0].as_path(), &paths[..]));
        assert_eq!(g.str("general.name").unwrap(), "split");
        let names: Vec<&str> = g.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        for t in g.tensors() {
            assert_eq!(g.bytes(t), [t.name.as_bytes()[0]; 8]);
        }
        assert_eq!(g.tensor("c").unwrap().shard, 1);
        assert_eq!(g.file_bytes(), paths.iter().map(|p| std::fs::metadata(p).unwrap().len()).sum::<u64>());
    }
}

#[test]
fn a_missing_shard_is_named() {
    let dir = TempDir::new("missing-shard");
    let paths = write_shards(&dir, |_, _| {});
    std::fs::remove_file(&paths[2]).unwrap();
    for path in &paths[..2] {
        let error = Gguf::open(path).err();
        assert!(matches!(error, Some(GgufError::MissingShard { no: 3, count: 3, .. })));
        says(error, &["big model-00003-of-00003.gguf", "shard 3 of 3 is missing"]);
    }
}

#[test]
fn shards_that_do_not_belong_together_are_refused() {
    let dir = TempDir::new("mixed-shards");
    let paths = write_shards(&dir, |no, w| {
        if no == 2 {
            w.set("split.count", 5u16).unwrap();
        }
    });
    says(Gguf::open(&paths[0]).err(), &["00002-of-00003", "should be shard 2 of 3", "2 of 5"]);
    says(Gguf::open(&paths[1]).err(), &["00002-of-00003", "says 3 shards", "'split.count' says 5"]);

    let paths = write_shards(&dir, |_, _| {});
    std::fs::copy(&paths[0], &paths[1]).unwrap();
    says(Gguf::open(&paths[0]).err(), &["00002-of-00003", "should be shard 2 of 3", "1 of 3"]);

    let paths = write_shards(&dir, |_, w| w.set("split.tensors.count", 9i32).unwrap());
    says(Gguf::open(&paths[2]).err(), &["9 tensors", "hold 4"]);
}

#[test]
fn a_name_in_two_shards_is_refused() {
    let dir = TempDir::new("twice");
    for no in 1..=2u16 {
        let mut w = Writer::create(&shard_path(&dir.file("m.gguf"), no.into(), 2)).unwrap();
        w.set("split.no", no - 1).unwrap();
        w.set("split.count", 2u16).unwrap();
        w.declare("same", Format::F32, &[1]).unwrap();
        w.write_tensor("same", &[0; 4]).unwrap();
        w.finish().unwrap();
    }
    let error = Gguf::open(&dir.file("m-00001-of-00002.gguf")).err();
    says(error, &["m-00002-of-00002.gguf", "'same' is there twice", "m-00001-of-00002.gguf"]);
}

#[test]
fn a_renamed_shard_is_told_how_shards_are_named() {
    let dir = TempDir::new("renamed");
    let paths = write_shards(&dir, |_, _| {});
    std::fs::rename(&paths[0], dir.file("model.gguf")).unwrap();
    says(Gguf::open(&dir.file("model.gguf")).err(), &["model.gguf", "one of 3 shards", "NAME-00001-of-00003.gguf"]);
}
