//! Writing behind: bounded, stoppable, and silent after one word when the disk is full.

use std::sync::Arc;
use std::time::Duration;

use rynd::cache::{CacheStore, Writer};

use super::crash;
use super::support::{Part, Told, check, folder, model, open};

const LONG: Duration = Duration::from_secs(60);

/// Hands a part over; false when it was not taken.
pub fn save(writer: &Writer, part: &Part) -> bool {
    let Some(mut saving) = part.with(|piece| writer.begin(piece)).unwrap() else { return false };
    let (pages, states) = part.records();
    for (group, page, bytes) in pages {
        if !saving.page(group, page, bytes) {
            return false;
        }
    }
    for (i, bytes) in states.into_iter().enumerate() {
        if !saving.state(i, bytes) {
            return false;
        }
    }
    saving.finish()
}

#[test]
fn pieces_are_there_after_a_flush_or_the_end() {
    let (dir, toy) = (folder(), model(&[None], false));
    let store = open(dir.path(), &toy);
    let writer = Writer::new(store.clone(), 100, LONG).unwrap();
    let ids: Vec<u32> = (1..=40).collect();
    assert!(save(&writer, &Part::new(&ids[..17], 0, 1)));
    assert!(writer.flush(LONG));
    assert!(!save(&writer, &Part::new(&ids[..17], 0, 1)), "it is there already");
    check(&store.lookup(&ids).unwrap(), &toy, &ids);
    // Two at a time, record by record.
    let parts = [Part::new(&ids, 16, 1), Part::new(&[7; 30], 0, 1)];
    let mut savings = parts.each_ref().map(|part| part.with(|piece| writer.begin(piece)).unwrap().unwrap());
    for i in 0..8 {
        for (saving, part) in savings.iter_mut().zip(&parts) {
            if let Some((group, page, bytes)) = part.records().0.into_iter().rev().nth(i) {
                assert!(saving.page(group, page, bytes), "waits, and is taken");
                assert!(writer.waiting_bytes() <= 100);
            }
        }
    }
    savings.into_iter().for_each(|saving| assert!(saving.finish()));
    drop(writer);
    for ids in [&ids, &parts[1].ids] {
        let hit = store.lookup(ids).unwrap();
        assert_eq!(hit.tokens, ids.len());
        check(&hit, &toy, ids);
    }
}

#[test]
fn a_piece_that_is_dropped_leaves_nothing_and_a_stopped_writer_takes_nothing() {
    let (dir, toy) = (folder(), model(&[None], false));
    let store = open(dir.path(), &toy);
    let writer = Writer::new(store.clone(), 1 << 20, LONG).unwrap();
    let part = Part::new(&[1, 2, 3, 4, 5], 0, 1);
    let begin = || part.with(|piece| writer.begin(piece)).unwrap().unwrap();
    let mut dropped = begin();
    assert!(dropped.page(0, 0, part.records().0[0].2.clone()));
    assert!(dropped.has_room(1 << 19) && !dropped.has_room(2 << 20) || writer.waiting_bytes() == 0);
    drop(dropped);
    let mut late = begin();
    drop(writer);
    assert!(!late.page(0, 0, part.records().0[0].2.clone()));
    assert!(!late.finish());
    assert_eq!(std::fs::read_dir(dir.path().join(toy.key.to_string())).unwrap().count(), 0);
}

#[test]
fn a_writer_that_may_not_wait_gives_up() {
    let (dir, toy) = (folder(), model(&[None], false));
    let store = open(dir.path(), &toy);
    let writer = Writer::new(store.clone(), 1 << 30, Duration::ZERO).unwrap();
    for i in 0..200 {
        assert!(save(&writer, &Part::new(&[i; 60], 0, 1)));
    }
    drop(writer);
    // It has not been waited for; what is there is whole.
    let later = open(dir.path(), &toy);
    for i in 0..200 {
        if let Some(hit) = later.lookup(&[i; 60]) {
            check(&hit, &toy, &[i; 60]);
        }
    }
}

#[test]
fn a_cap_of_nothing_and_an_emptied_folder_are_survived() {
    let (dir, toy) = (folder(), model(&[None], false));
    let told = Told::default();
    let off = CacheStore::open(dir.path(), toy.clone(), told.options(0)).unwrap();
    assert!(!save(&Writer::new(off, 100, LONG).unwrap(), &Part::new(&[1], 0, 1)));
    let store = CacheStore::open(dir.path(), toy.clone(), told.options(1 << 20)).unwrap();
    let writer = Writer::new(store.clone(), 1 << 20, LONG).unwrap();
    for round in 0..3 {
        std::fs::remove_dir_all(dir.path().join(toy.key.to_string())).unwrap();
        assert!(save(&writer, &Part::new(&[1, 2, round], 0, 1)));
        assert!(writer.flush(LONG));
        assert_eq!(store.lookup(&[1, 2, round]).unwrap().tokens, 3);
    }
    assert!(told.take().is_empty());
}

/// Runs in another process, which can not write what it wants to.
pub fn write_until_full(dir: &std::path::Path) {
    let toy = model(&[None], true);
    let told = Told::default();
    let store = CacheStore::open(dir, toy.clone(), told.options(u64::MAX)).unwrap();
    let writer = Writer::new(store.clone(), 1 << 20, LONG).unwrap();
    let part = |i: u32, bytes: usize| Part { states: vec![(5, bytes)], ..Part::new(&[i; 5], 0, 1) };
    assert!(save(&writer, &part(1, 1000)));
    assert!(writer.flush(LONG) && store.writes());
    save(&writer, &part(2, 4 << 20));
    assert!(writer.flush(LONG));
    assert!(!store.writes() && !save(&writer, &part(3, 10)));
    drop(writer);
    let told = told.take();
    assert!(told.len() == 1 && told[0].contains("no longer kept on disk"), "{told:?}");
    check(&store.lookup(&[1; 5]).unwrap(), &toy, &[1; 5]);
    assert!(store.lookup(&[2; 5]).is_none());
    let left: Vec<_> = std::fs::read_dir(dir.join(toy.key.to_string())).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    println!("{}", told[0]);
}

/// What a shell makes of this before it becomes the child.
fn limited(dir: &std::path::Path, program: &str, before: &str) -> std::process::Output {
    let mut command = crash::child("full", dir);
    let mut shell = std::process::Command::new(program);
    shell.args(if program == "unshare" { &["-rm", "sh", "-c"][..] } else { &["-c"] });
    shell.arg(format!("{before} && exec \"$0\" \"$@\"")).arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command = shell;
    command.output().unwrap()
}

#[test]
#[cfg(unix)]
fn a_file_that_may_not_grow_ends_the_writing_and_nothing_else() {
    let dir = folder();
    // As the program does, the signal is ignored.
    let output = limited(dir.path(), "sh", "trap '' XFSZ && ulimit -f 64");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("(os error 27)"), "{text}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_ends_the_writing_and_nothing_else() {
    let dir = folder();
    let mounted = format!("mount -t tmpfs -o size=1m tmpfs '{}'", dir.path().display());
    let probe = std::process::Command::new("unshare").args(["-rm", "sh", "-c", &mounted]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: this machine lets no test mount a small disk");
        return;
    }
    let output = limited(dir.path(), "unshare", &mounted);
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("(os error 28)"), "{text}");
}

/// The store is behind an `Arc`, as everything here that outlives its caller.
#[test]
fn stores_and_hits_may_be_used_by_any_thread() {
    fn anywhere<T: Send + Sync + 'static>() {}
    anywhere::<Arc<CacheStore>>();
    anywhere::<rynd::cache::Hit>();
    anywhere::<Writer>();
    anywhere::<rynd::cache::Saving>();
}
