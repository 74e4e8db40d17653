//! Written, found, read back: by one store, by another one, by a later one.

use std::sync::Arc;

use rynd::cache::{Begin, CacheStore, Model};

use super::support::{Part, Told, check, folder, model, open, put};

fn found(store: &Arc<CacheStore>, model: &Model, ids: &[u32]) -> usize {
    store.lookup(ids).map_or(0, |hit| {
        check(&hit, model, ids);
        hit.tokens
    })
}

#[test]
fn what_was_written_is_read_back_up_to_any_token() {
    let (dir, toy) = (folder(), model(&[None, Some(6)], false));
    let store = open(dir.path(), &toy);
    let ids: Vec<u32> = (1..=30).collect();
    assert_eq!(found(&store, &toy, &ids), 0);
    put(&store, &Part::new(&ids, 0, 2)).unwrap();
    for n in 1..=30 {
        let mut other = ids[..n].to_vec();
        assert_eq!(found(&store, &toy, &other), n);
        other.extend([99, 98]);
        assert_eq!(found(&store, &toy, &other), n, "what goes on differently shares the prefix");
    }
    let later = open(dir.path(), &toy);
    assert_eq!(found(&later, &toy, &ids), 30);
    assert_eq!(later.size().0, 1);
}

#[test]
fn pieces_cut_differently_make_one_prefix() {
    let (dir, toy) = (folder(), model(&[None], false));
    let (one, two) = (open(dir.path(), &toy), open(dir.path(), &toy));
    let ids: Vec<u32> = (1..=30).collect();
    put(&one, &Part::new(&ids[..17], 0, 1)).unwrap();
    // A branch inside a page begins with that page; another store writes it.
    let mut branch = ids[..14].to_vec();
    branch.extend(50..60);
    put(&two, &Part::new(&branch, 12, 1)).unwrap();
    put(&two, &Part::new(&ids, 16, 1)).unwrap();
    for store in [&one, &two] {
        assert_eq!(found(store, &toy, &ids), 30);
        assert_eq!(found(store, &toy, &branch), 24);
    }
    assert_eq!(two.lookup(&ids).unwrap().segments().count(), 2);
}

#[test]
fn what_lies_behind_a_window_need_not_be_there() {
    let (dir, toy) = (folder(), model(&[None, Some(6)], false));
    let store = open(dir.path(), &toy);
    let ids: Vec<u32> = (1..=30).collect();
    // Of the group with a window pages 5 to 7 are left, from position 20 on.
    put(&store, &Part { first_pages: vec![0, 5], ..Part::new(&ids, 0, 2) }).unwrap();
    assert_eq!(found(&store, &toy, &ids), 30);
    let hit = store.lookup(&ids[..26]).unwrap();
    assert_eq!((hit.tokens, hit.pages(0), hit.pages(1)), (26, 0..7, 5..7));
    assert!(store.lookup(&ids[..25]).is_none(), "position 25 sees 19, whose page is gone");
}

#[test]
fn a_model_with_states_goes_on_where_one_was_kept() {
    let (dir, toy) = (folder(), model(&[None], true));
    let store = open(dir.path(), &toy);
    let ids: Vec<u32> = (1..=30).collect();
    put(&store, &Part { states: vec![(9, 5), (21, 100)], ..Part::new(&ids[..22], 0, 1) }).unwrap();
    put(&store, &Part { states: vec![(30, 3)], ..Part::new(&ids, 20, 1) }).unwrap();
    for (wanted, tokens) in [(30, 30), (29, 21), (21, 21), (20, 9), (9, 9), (8, 0)] {
        assert_eq!(found(&store, &toy, &ids[..wanted]), tokens, "of {wanted}");
    }
    let only_states = model(&[], true);
    let store = open(dir.path(), &only_states);
    put(&store, &Part { states: vec![(7, 11)], ..Part::new(&ids[..9], 0, 0) }).unwrap();
    assert_eq!(found(&store, &only_states, &ids), 7, "a model of states alone");
}

#[test]
fn the_same_content_is_written_once() {
    let (dir, toy) = (folder(), model(&[None], false));
    let (one, two) = (open(dir.path(), &toy), open(dir.path(), &toy));
    let part = Part::new(&[1, 2, 3, 4, 5], 0, 1);
    let name = put(&one, &part).unwrap();
    assert!(matches!(part.with(|piece| two.begin(piece)).unwrap(), Begin::Stored));
    // Both began before either was done.
    let part = Part::new(&[1, 2, 3, 9], 0, 1);
    let [Begin::Started(mut a), Begin::Started(mut b)] =
        [&one, &two].map(|s| part.with(|piece| s.begin(piece)).unwrap())
    else {
        panic!("both begin")
    };
    part.write_records(&mut a);
    part.write_records(&mut b);
    assert_eq!(a.finish().unwrap(), b.finish().unwrap());
    assert_eq!((one.size().0, two.size().0), (2, 2));
    assert_eq!(found(&one, &toy, &part.ids), 4);
    assert!(dir.path().join(toy.key.to_string()).join(format!("{name}.kv")).is_file());
}

#[test]
fn a_piece_that_is_not_whole_leaves_nothing() {
    let (dir, toy) = (folder(), model(&[None], false));
    let store = open(dir.path(), &toy);
    let part = Part::new(&[1, 2, 3, 4, 5], 0, 1);
    let begin = || match part.with(|piece| store.begin(piece)).unwrap() {
        Begin::Started(writer) => writer,
        _ => panic!("it begins"),
    };
    let mut writer = begin();
    let (pages, _) = part.records();
    writer.page(0, 1, &pages[1].2).unwrap();
    assert!(writer.page(0, 1, &pages[1].2).is_err(), "twice");
    assert!(writer.page(0, 2, &pages[1].2).is_err(), "not its page");
    assert!(writer.page(0, 0, &pages[1].2[1..]).is_err(), "another length");
    assert!(writer.finish().unwrap_err().to_string().contains("never given"));
    drop(begin());
    let folder = dir.path().join(toy.key.to_string());
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0);
    assert!(store.lookup(&part.ids).is_none());
}

#[test]
fn a_piece_that_contradicts_itself_is_refused() {
    let (dir, toy) = (folder(), model(&[None], false));
    let store = open(dir.path(), &toy);
    let good = Part::new(&[1, 2, 3, 4, 5, 6], 4, 1);
    let bad = [
        Part { start: 3, ..good.clone() },
        Part { ids: vec![1, 2, 3, 4], ..good.clone() },
        Part { first_pages: vec![0], ..good.clone() },
        Part { first_pages: vec![3], ..good.clone() },
        Part { first_pages: vec![], ..good.clone() },
        Part { states: vec![(4, 1)], ..good.clone() },
        Part { states: vec![(6, 1), (5, 1)], ..good.clone() },
        Part { states: vec![(7, 1)], ..good.clone() },
        Part { seconds: f64::NAN, ..good.clone() },
    ];
    for part in bad {
        assert!(part.with(|piece| store.begin(piece)).is_err(), "{part:?}");
    }
    assert!(put(&store, &good).is_some());
    let hollow = Told::default().options(0);
    let mut wrong = toy.clone();
    wrong.layout.page_tokens = 0;
    assert!(CacheStore::open(dir.path(), wrong, hollow).is_err());
}
