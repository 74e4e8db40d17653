//! The cap: what is worth least goes first, and nothing that others go on from.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rynd::cache::{Begin, CacheStore, Digest, Model};

use super::support::{Part, Told, folder, model, open, put};

const HOUR: u64 = 3600;

fn path(dir: &Path, model: &Model, name: Digest) -> std::path::PathBuf {
    dir.join(model.key.to_string()).join(format!("{name}.kv"))
}

fn used(dir: &Path, model: &Model, name: Digest, hours_ago: u64) {
    let file = std::fs::File::open(path(dir, model, name)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(hours_ago * HOUR)).unwrap();
}

fn capped(dir: &Path, model: &Model, cap: u64) -> Arc<CacheStore> {
    CacheStore::open(dir, model.clone(), Told::default().options(cap)).unwrap()
}

/// 8 tokens that share nothing with another number's; the texts of all are equally long, and so are the files.
fn turn(i: u32) -> [u32; 8] {
    [0, 1, 2, 3, 4, 5, 0, 1].map(|t| 1401 + 70 * i + t)
}

fn conversation(i: u32) -> Part {
    Part::new(&turn(i), 0, 1)
}

fn file_bytes(dir: &Path, model: &Model, name: Digest) -> u64 {
    std::fs::metadata(path(dir, model, name)).unwrap().len()
}

#[test]
fn what_was_used_longest_ago_or_is_cheapest_goes_first() {
    let (dir, toy) = (folder(), model(&[None], false));
    let store = open(dir.path(), &toy);
    // Two half-lives are a factor of 4: 10 s used now is worth more than 30 s of 48 h ago, and less than 60 s.
    let ages_and_costs = [(48, 30.0), (48, 60.0), (0, 10.0), (0, 100.0)];
    let names = ages_and_costs
        .iter()
        .zip(1..)
        .map(|((_, seconds), i)| put(&store, &Part { seconds: *seconds, ..conversation(i) }).unwrap());
    let names: Vec<Digest> = names.collect();
    for (name, (age, _)) in names.iter().zip(ages_and_costs) {
        used(dir.path(), &toy, *name, age);
    }
    let bytes = file_bytes(dir.path(), &toy, names[0]);
    let store = capped(dir.path(), &toy, bytes * 9 / 2);
    for (i, victim) in [0, 2, 1, 3].into_iter().enumerate() {
        assert!(path(dir.path(), &toy, names[victim]).exists());
        let part = Part { seconds: 1e6, ..conversation(10 + i as u32) };
        put(&store, &part).unwrap();
        assert!(!path(dir.path(), &toy, names[victim]).exists(), "{victim} is the next to go");
        assert_eq!(store.size(), (4, 4 * bytes));
    }
}

#[test]
fn what_is_used_often_outlives_what_was_used_once() {
    let (dir, toy) = (folder(), model(&[None], false));
    let store = open(dir.path(), &toy);
    let names = [1, 2].map(|i| put(&store, &conversation(i)).unwrap());
    names.iter().for_each(|name| used(dir.path(), &toy, *name, 24));
    // Each process reads it once; the file's time sums up.
    for _ in 0..3 {
        let store = open(dir.path(), &toy);
        let hit = store.lookup(&conversation(1).ids).unwrap();
        hit.read_page(0, 0, &mut vec![0; toy.layout.groups[0].page_bytes]).unwrap();
        hit.read_page(0, 1, &mut vec![0; toy.layout.groups[0].page_bytes]).unwrap();
    }
    used(dir.path(), &toy, names[1], 0);
    let stamp = |name| std::fs::metadata(path(dir.path(), &toy, name)).unwrap().modified().unwrap();
    // 1/2 + 3 uses weigh as one use log2(3.5) days later.
    let ahead = stamp(names[0]).duration_since(stamp(names[1])).unwrap().as_secs_f64();
    assert!((ahead - 3.5_f64.log2() * 24.0 * 3600.0).abs() < 60.0, "{ahead}");
    let store = capped(dir.path(), &toy, file_bytes(dir.path(), &toy, names[0]) * 5 / 2);
    put(&store, &conversation(3)).unwrap();
    assert!(path(dir.path(), &toy, names[0]).exists() && !path(dir.path(), &toy, names[1]).exists());
}

#[test]
fn a_parent_stays_until_its_children_are_gone_and_orphans_go_at_once() {
    let (dir, toy) = (folder(), model(&[None], false));
    let store = open(dir.path(), &toy);
    let ids = [turn(50), turn(51), turn(52)].concat();
    // A chain of three whose first is the oldest and cheapest.
    let chain = [(8, 0), (16, 8), (24, 16)].map(|(end, start)| {
        put(&store, &Part { seconds: 1.0 + start as f64, ..Part::new(&ids[..end], start, 1) }).unwrap()
    });
    let lonely = put(&store, &Part { seconds: 1e9, ..Part::new(&[turn(60), turn(61)].concat(), 8, 1) }).unwrap();
    for (name, hours) in chain.iter().zip([300, 200, 100]) {
        used(dir.path(), &toy, *name, hours);
    }
    let bytes = store.size().1;
    let store = capped(dir.path(), &toy, bytes);
    for (i, victim) in [lonely, chain[2], chain[1], chain[0]].into_iter().enumerate() {
        assert!(path(dir.path(), &toy, victim).exists());
        put(&store, &Part { seconds: 1e9, ..conversation(10 + i as u32) }).unwrap();
        assert!(!path(dir.path(), &toy, victim).exists(), "{i}");
    }
}

#[test]
fn what_a_piece_goes_on_from_makes_no_room_for_it() {
    let (dir, toy) = (folder(), model(&[None], false));
    let ids: Vec<u32> = (1..=16).collect();
    let first = put(&open(dir.path(), &toy), &Part::new(&ids[..8], 0, 1)).unwrap();
    let bytes = file_bytes(dir.path(), &toy, first);
    let store = capped(dir.path(), &toy, bytes * 3 / 2);
    assert!(matches!(Part::new(&ids, 8, 1).with(|piece| store.begin(piece)).unwrap(), Begin::TooLarge));
    assert_eq!(store.lookup(&ids).unwrap().tokens, 8);
    let store = capped(dir.path(), &toy, bytes / 2);
    assert!(matches!(conversation(5).with(|piece| store.begin(piece)).unwrap(), Begin::TooLarge));
    assert_eq!(store.lookup(&ids).unwrap().tokens, 8, "what would never fit removes nothing");
}

#[test]
fn one_cap_holds_for_all_models_and_for_what_is_being_written() {
    let (dir, toy, other) = (folder(), model(&[None], false), model(&[None], true));
    let theirs = put(&open(dir.path(), &other), &Part { states: vec![(8, 1)], ..conversation(1) }).unwrap();
    used(dir.path(), &other, theirs, 500);
    let mine = put(&open(dir.path(), &toy), &conversation(2)).unwrap();
    let bytes = file_bytes(dir.path(), &toy, mine);
    let store = capped(dir.path(), &toy, bytes * 5 / 2);
    let begin = |i| match conversation(i).with(|piece| store.begin(piece)).unwrap() {
        Begin::Started(writer) => writer,
        _ => panic!("{i} begins"),
    };
    let mut writers = [begin(3), begin(4)];
    assert!(!path(dir.path(), &other, theirs).exists(), "the third conversation took its place");
    assert!(!path(dir.path(), &toy, mine).exists(), "the fourth one this");
    assert!(matches!(conversation(5).with(|piece| store.begin(piece)).unwrap(), Begin::TooLarge));
    for (writer, i) in writers.iter_mut().zip(3..) {
        conversation(i).write_records(writer);
    }
    for writer in writers {
        writer.finish().unwrap();
    }
    assert_eq!(store.size(), (2, 2 * bytes));
}
