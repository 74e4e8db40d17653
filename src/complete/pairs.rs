//! How much of what the prefix leaves open is the completion's to close.
//!
//! The suffix closes the rest. Where both are whole, counting tells; a prefix that does not begin with its file, and code
//! that is broken elsewhere, make counts wrong, so what would pair up is compared too: its kind, and the indentation of a
//! closer that begins its line with that of its opener's line.

use super::lexer::{Close, Lexer, Open};

/// Pairs that are compared; what is farther away is more likely to be broken by an edit.
const NEAR: usize = 8;
/// What a string without an end counts, beside pairs that do not fit.
const BROKEN: u32 = 4;

/// How many of the innermost open things before the cursor are not closed behind it.
pub fn unclosed(before: &Lexer, suffix: &str) -> usize {
    let choice = |inside: bool| {
        let mut after = before.onward(inside);
        after.read(suffix);
        // A text that is not what it was taken for shows by strings without an end.
        let broken = BROKEN * (after.broken.min(3) as u32 + u32::from(after.in_text()));
        let open = before.open();
        let least = (0..=open.len()).map(|own| (cost(&open[..open.len() - own], after.unopened()) + broken, own));
        // Of equals the one that leaves most to the suffix, as it is there already.
        least.min().unwrap_or_default()
    };
    // In a string the suffix may begin in it, or behind it.
    let found = choice(before.in_text());
    let found =
        if before.in_text() { [found, choice(false)].into_iter().min_by_key(|(cost, _)| *cost) } else { Some(found) };
    found.map_or(0, |(_, own)| own)
}

/// How badly the suffix's ends fit to what is left open.
fn cost(open: &[Open], closes: &[Close]) -> u32 {
    let unbalanced = u32::from(open.len() != closes.len());
    let pairs = open.iter().rev().zip(closes).take(NEAR);
    let wrong = pairs.map(|(open, close)| match () {
        () if open.closer != close.closer => 4,
        () if close.columns.is_some_and(|columns| columns != open.columns) => 2,
        () => 0,
    });
    unbalanced * 3 + wrong.sum::<u32>()
}
