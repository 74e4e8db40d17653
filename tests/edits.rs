//! A long agent transcript that is edited anywhere: only what stands behind the edit is computed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden_case;

use golden_case::{exact, fixture, furthest, load};
use rynd::engine::{Engine, EngineConfig, Session, common_prefix};
use rynd::tokenizer::{Prompt, Tokenizer, Vocab};

/// splitmix64.
fn below(state: &mut u64, n: usize) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) % n as u64) as usize
}

/// The transcript with a few characters inserted, deleted or replaced inside of a message, and where.
fn edited(text: &str, random: &mut u64) -> (String, usize) {
    loop {
        let at = below(random, text.len() - 8);
        let end = at + below(random, 6);
        let new = ["", "x", " not", "42\n", "é", "fn f() {}"][below(random, 6)];
        let cut = text.is_char_boundary(at) && text.is_char_boundary(end);
        // The structure stays: control tokens are the template's.
        let near = |at: usize| &text.as_bytes()[at.saturating_sub(14)..(at + 14).min(text.len())];
        let inside = |at: usize| !near(at).windows(2).any(|pair| pair == b"<|" || pair == b"|>");
        if cut && inside(at) && inside(end) && &text[at..end] != new {
            return (format!("{}{new}{}", &text[..at], &text[end..]), at);
        }
    }
}

fn check(model: &str, edits: usize, context: usize) {
    let text = std::fs::read_to_string(fixture("sequences/transcript.txt")).unwrap();
    let config = EngineConfig { context: Some(context), batch: 256, sessions: 2, ..exact() };
    let mut engine: Engine = load(model, &config);
    let tokenizer = Tokenizer::new(Vocab::from_gguf(engine.gguf()).unwrap()).unwrap();
    // As much of it as 4,000 tokens hold.
    let whole = tokenizer.encode_prompt(&text);
    let text = tokenizer.decode(&whole[..whole.len().min(4000)], true);
    let base = engine.encode_prompt(&tokenizer, &Prompt::from(text.clone()));
    assert!(base.len() > 3900, "{} tokens", base.len());
    let mut session = Session::new();
    session.sync(&mut engine, &base).unwrap();
    engine.keep(&session);
    drop(session);
    let mut random = 7;
    let (mut computed, mut behind) = (0, 0);
    for edit in 0..edits {
        let (new, at) = edited(&text, &mut random);
        let ids = engine.encode_prompt(&tokenizer, &Prompt::from(new.clone()));
        assert_eq!(tokenizer.decode(&ids, true), new, "the ids are those of this text");
        let (mut session, _) = engine.recall(&ids);
        let held = session.ids().len();
        // Any token is a unit: everything up to the first that differs is there, but for the last one's logits.
        assert_eq!(held, common_prefix(&base, &ids).min(ids.len() - 1), "edit {edit}");
        // And that is where the text was changed, up to the word in which it was.
        let unchanged = tokenizer.decode(&ids[..held], true).len();
        assert!(unchanged + 32 >= at, "edit {edit} at byte {at}: only {unchanged} bytes were kept");
        computed += ids.len() - held;
        behind += ids.len() - common_prefix(&base, &ids);
        if edit % (edits / 5) == 0 {
            let found = session.sync(&mut engine, &ids).unwrap().to_vec();
            engine.keep(&session);
            let expected = Session::new().sync(&mut engine, &ids).unwrap().to_vec();
            assert!(furthest(&found, &expected) <= 5e-4, "edit {edit}");
            engine.forget();
            let mut again = Session::new();
            again.sync(&mut engine, &base).unwrap();
            engine.keep(&again);
        }
    }
    println!("{model}: {computed} tokens computed after {edits} edits of {}, {behind} behind them", base.len());
    assert!(computed <= behind + edits);
}

#[test]
fn a_thousand_edits_of_a_transcript_compute_what_is_behind_them() {
    check("qwen2", 1000, 5000);
}
