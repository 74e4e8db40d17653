//! Files that are not what they were: ignored, removed and told, and never a wrong byte.

use std::path::{Path, PathBuf};

use rynd::cache::{Cabinet, CacheError, CacheStore, Hit, Model};
use tempfile::TempDir;

use super::support::{Part, Told, check, folder, model, open, put};

const IDS: [u32; 6] = [1, 2, 3, 4, 5, 6];

/// A folder with one small file; its bytes.
fn one_file() -> (TempDir, Model, Vec<u32>, PathBuf, Vec<u8>) {
    let (dir, toy) = (folder(), model(&[None, Some(2)], true));
    let ids = IDS.to_vec();
    let part = Part { states: vec![(3, 5), (6, 9)], ..Part::new(&ids, 0, 2) };
    let name = put(&open(dir.path(), &toy), &part).unwrap();
    let path = dir.path().join(toy.key.to_string()).join(format!("{name}.kv"));
    let bytes = std::fs::read(&path).unwrap();
    (dir, toy, ids, path, bytes)
}

/// Uses a damaged file: whatever is given out is right, and it ends removed.
fn is_refused(dir: &Path, toy: &Model, ids: &[u32], path: &Path, what: &str) {
    let told = Told::default();
    let store = CacheStore::open(dir, toy.clone(), told.options(u64::MAX)).unwrap();
    // The state at position 3, and the page that only it sees, are read by who asks for 3 tokens.
    let mut failed = [ids, &ids[..3]].map(|ids| store.lookup(ids).is_some_and(|hit| fails(&hit, toy, ids, what)));
    failed[0] |= store.lookup(ids).is_none();
    assert!(failed.contains(&true), "{what}: all was read");
    assert!(store.lookup(ids).is_none(), "{what}");
    assert!(!path.exists(), "{what}");
    let told = told.take();
    assert!(told.len() == 1 && told[0].contains(".kv was removed: "), "{what}: {told:?}");
}

/// Reads all of a hit: every record is right, or an error.
fn fails(hit: &Hit, toy: &Model, ids: &[u32], what: &str) -> bool {
    let mut failed = false;
    for (g, group) in toy.layout.groups.iter().enumerate() {
        for page in hit.pages(g) {
            let mut bytes = vec![0; group.page_bytes];
            match hit.read_page(g, page, &mut bytes) {
                Ok(()) => assert_eq!(bytes, super::support::page(&IDS, g, page), "{what}"),
                Err(e) => failed |= matches!(e, CacheError::Bad { .. }),
            }
        }
    }
    let mut bytes = vec![0; hit.state_bytes().unwrap()];
    match hit.read_state(&mut bytes) {
        Ok(()) => assert_eq!(bytes, super::support::state(&ids[..hit.tokens], bytes.len()), "{what}"),
        Err(e) => failed |= matches!(e, CacheError::Bad { .. }),
    }
    failed
}

#[test]
fn every_flipped_byte_is_noticed() {
    let (dir, toy, ids, path, bytes) = one_file();
    for at in 0..bytes.len() {
        let mut other = bytes.clone();
        other[at] ^= 1 << (at % 8);
        std::fs::write(&path, &other).unwrap();
        is_refused(dir.path(), &toy, &ids, &path, &format!("byte {at} of {}", bytes.len()));
        std::fs::write(&path, &other).unwrap();
        let found = Cabinet::new(dir.path()).verify(|_| {});
        assert_eq!((found.files, found.broken.len(), path.exists()), (1, 1, false), "byte {at}");
    }
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(Cabinet::new(dir.path()).verify(|_| {}).bytes, bytes.len() as u64);
    check(&open(dir.path(), &toy).lookup(&ids).unwrap(), &toy, &ids);
}

#[test]
fn every_other_length_is_noticed() {
    let (dir, toy, ids, path, bytes) = one_file();
    for len in (0..bytes.len()).chain([bytes.len() + 1, bytes.len() + 4096]) {
        let mut other = bytes.clone();
        other.resize(len, 0);
        std::fs::write(&path, &other).unwrap();
        is_refused(dir.path(), &toy, &ids, &path, &format!("{len} of {} bytes", bytes.len()));
    }
}

#[test]
fn files_of_another_model_name_or_place_are_removed_and_others_left_alone() {
    let (dir, toy, ids, path, bytes) = one_file();
    let other = model(&[None], false);
    let theirs = put(&open(dir.path(), &other), &Part::new(&ids, 0, 1)).unwrap();
    let theirs = dir.path().join(other.key.to_string()).join(format!("{theirs}.kv"));
    let mine = path.with_file_name(theirs.file_name().unwrap());
    std::fs::copy(&theirs, &mine).unwrap();
    let renamed = path.with_file_name(format!("{}.kv", "0".repeat(64)));
    std::fs::write(&renamed, &bytes).unwrap();
    let left = ["notes.txt", "notes.kv", "notes.tmp", "0.tmp"].map(|name| path.with_file_name(name));
    left.iter().for_each(|file| std::fs::write(file, "keep").unwrap());

    let told = Told::default();
    let store = CacheStore::open(dir.path(), toy.clone(), told.options(u64::MAX)).unwrap();
    let mut told = told.take();
    told.sort_by_key(|message| message.contains("name"));
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].ends_with("it belongs to another model"), "{told:?}");
    assert!(told[1].ends_with("its name is not that of its content"), "{told:?}");
    assert!(!mine.exists() && !renamed.exists() && theirs.exists());
    assert!(left.iter().all(|file| file.exists()));
    assert_eq!(store.lookup(&ids).unwrap().tokens, 6);
}

#[test]
fn a_file_that_vanishes_shrinks_or_changes_under_a_hit_is_an_error() {
    let (dir, toy, ids, path, bytes) = one_file();
    let mut page = vec![0; toy.layout.groups[0].page_bytes];
    let store = open(dir.path(), &toy);

    let hit = store.lookup(&ids).unwrap();
    hit.read_page(0, 0, &mut page).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(bytes.len() as u64 / 2).unwrap();
    assert!(matches!(hit.read_page(0, 1, &mut page), Err(CacheError::Bad { .. })));
    assert!(store.lookup(&ids).is_none());

    std::fs::write(&path, &bytes).unwrap();
    let store = open(dir.path(), &toy);
    let hit = store.lookup(&ids).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(hit.read_page(0, 0, &mut page), Err(CacheError::Gone { .. })));
    assert!(store.lookup(&ids).is_none());

    // The same ids, written by another process with other states: other places, the same name.
    std::fs::write(&path, &bytes).unwrap();
    let store = open(dir.path(), &toy);
    let hit = store.lookup(&ids).unwrap();
    std::fs::remove_file(&path).unwrap();
    put(&open(dir.path(), &toy), &Part { states: vec![(5, 64)], ..Part::new(&ids, 0, 2) }).unwrap();
    assert!(matches!(hit.read_page(0, 0, &mut page), Err(CacheError::Gone { .. })));
    assert!(path.exists(), "it is sound");
    let again = open(dir.path(), &toy).lookup(&ids).unwrap();
    assert_eq!(again.tokens, 5);
    check(&again, &toy, &ids);
}

#[test]
fn two_records_that_changed_places_are_noticed() {
    let (dir, toy) = (folder(), model(&[None], false));
    let ids: Vec<u32> = (1..=8).collect();
    let name = put(&open(dir.path(), &toy), &Part::new(&ids, 0, 1)).unwrap();
    let path = dir.path().join(toy.key.to_string()).join(format!("{name}.kv"));
    let mut bytes = std::fs::read(&path).unwrap();
    let record = toy.layout.groups[0].page_bytes + 8;
    let at = bytes.len() - 2 * record;
    bytes[at..].rotate_left(record);
    std::fs::write(&path, bytes).unwrap();
    is_refused_page(&open(dir.path(), &toy).lookup(&ids).unwrap(), &toy);
}

fn is_refused_page(hit: &Hit, toy: &Model) {
    let mut page = vec![0; toy.layout.groups[0].page_bytes];
    assert!(matches!(hit.read_page(0, 0, &mut page), Err(CacheError::Bad { .. })));
}
