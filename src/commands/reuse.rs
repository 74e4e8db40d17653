//! What of a prompt was remembered, what was read from disk, what was computed, and where it left the conversation before.

use crate::generate::Summary;
use crate::tokenizer::Tokenizer;

/// Characters of either side of a difference that are shown.
const SHOWN: usize = 24;

/// As in "12,204 tokens: 11,960 remembered, 0 from disk, 244 computed".
pub fn tokens(summary: &Summary) -> String {
    let remembered = summary.cached_tokens - summary.disk_tokens;
    let computed = summary.prompt_tokens - summary.cached_tokens;
    format!(
        "{} tokens: {} remembered, {} from disk, {} computed",
        grouped(summary.prompt_tokens),
        grouped(remembered),
        grouped(summary.disk_tokens),
        grouped(computed)
    )
}

/// Where the prompt differs from a conversation that was remembered; nothing when it goes on from it.
pub fn parted(summary: &Summary, tokenizer: &Tokenizer) -> Option<String> {
    let parted = summary.parted.as_ref()?;
    let text = |ids: &[u32]| -> String {
        let text = tokenizer.decode(ids, true);
        text.chars().take(SHOWN).flat_map(char::escape_debug).collect()
    };
    let (was, is) = (text(&parted.was), text(&parted.is));
    Some(format!("differs from the cached conversation at token {}: `{was}` / `{is}`", grouped(parted.at)))
}

/// 2151 as 2,151.
fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!([0, 999, 1000, 2151, 1234567].map(grouped), ["0", "999", "1,000", "2,151", "1,234,567"]);
    }
}
