//! By text: whole tokens, whole characters, ids as they were generated.

use rynd::cache::{Begin, CacheStore, Piece, TextHit};

use super::support::{PAGE, folder, model, open};

/// Writes tokens with these texts and ids, from `start` on.
fn put(store: &CacheStore, tokens: &[(u32, &[u8])], start: usize) {
    let ids: Vec<u32> = tokens.iter().map(|t| t.0).collect();
    let lens: Vec<u32> = tokens[start..].iter().map(|t| t.1.len() as u32).collect();
    let text: Vec<u8> = tokens[start..].iter().flat_map(|t| t.1).copied().collect();
    let piece =
        Piece { ids: &ids, start, lens: &lens, text: &text, first_pages: &[start / PAGE], states: &[], seconds: 1.0 };
    let Begin::Started(mut writer) = store.begin(&piece).unwrap() else { panic!("it begins") };
    for page in start / PAGE..ids.len().div_ceil(PAGE) {
        writer.page(0, page, &super::support::page(&ids, 0, page)).unwrap();
    }
    writer.finish().unwrap();
}

fn hit(ids: &[u32], bytes: usize) -> Option<TextHit> {
    Some(TextHit { ids: ids.to_vec(), bytes })
}

#[test]
fn a_text_gives_the_ids_it_was_computed_from() {
    let (dir, toy) = (folder(), model(&[None], false));
    let store = open(dir.path(), &toy);
    // A start token without text, and an end token in the middle.
    put(&store, &[(1, b""), (10, b"hel"), (11, b"lo"), (2, b""), (12, b" wor"), (13, b"ld"), (3, b"")], 0);
    assert_eq!(store.lookup_text(b"hello world!"), hit(&[1, 10, 11, 2, 12, 13], 11), "what has no text ends no prefix");
    assert_eq!(store.lookup_text(b"hello wo"), hit(&[1, 10, 11], 5), "a token counts only whole");
    assert_eq!(store.lookup_text(b"hello"), hit(&[1, 10, 11], 5));
    assert_eq!(store.lookup_text(b"hel"), hit(&[1, 10], 3));
    for text in [&b"he"[..], b"", b"x", b"Hello"] {
        assert_eq!(store.lookup_text(text), None);
    }
}

#[test]
fn an_end_inside_a_character_is_cut_back() {
    let (dir, toy) = (folder(), model(&[None], false));
    let store = open(dir.path(), &toy);
    let (e, cry) = ("\u{e9}".as_bytes(), "\u{1f622}".as_bytes());
    put(&store, &[(1, b"a"), (2, &e[..1]), (3, &e[1..]), (4, &cry[..2]), (5, &cry[2..3]), (6, &cry[3..])], 0);
    assert_eq!(store.lookup_text("a\u{e9}\u{1f622}b".as_bytes()), hit(&[1, 2, 3, 4, 5, 6], 7));
    assert_eq!(store.lookup_text("a\u{e8}".as_bytes()), hit(&[1], 1), "another character with the same first byte");
    assert_eq!(store.lookup_text("a\u{e9}\u{1f623}".as_bytes()), hit(&[1, 2, 3], 3));
    assert_eq!(store.lookup_text("a\u{e9}".as_bytes()), hit(&[1, 2, 3], 3));
}

#[test]
fn a_text_is_followed_through_pieces_and_branches() {
    let (dir, toy) = (folder(), model(&[None], false));
    let store = open(dir.path(), &toy);
    let word: Vec<(u32, &[u8])> = vec![(1, b"one "), (2, b"two "), (3, b"three "), (4, b"four "), (5, b"five ")];
    put(&store, &word, 0);
    // The same text with another id, which goes on further; its piece begins with the page.
    let mut branch = word[..4].to_vec();
    branch.extend([(50, &b"fi"[..]), (51, b"ve "), (6, b"six "), (7, b"seven ")]);
    put(&store, &branch, 4);
    branch.extend([(8, &b"eight"[..])]);
    put(&store, &branch, 8);
    assert_eq!(store.lookup_text(b"one two three four five").unwrap().bytes, 21, "fi");
    assert_eq!(store.lookup_text(b"one two three four five six s"), hit(&[1, 2, 3, 4, 50, 51, 6], 28));
    let all = store.lookup_text(b"one two three four five six seven eight nine").unwrap();
    assert_eq!(all, hit(&[1, 2, 3, 4, 50, 51, 6, 7, 8], 39).unwrap());
    assert_eq!(store.lookup(&all.ids).unwrap().tokens, 9, "and their pages are there");
}
