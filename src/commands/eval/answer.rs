//! What an answer in Markdown says in code: its first fenced block.

/// The first code block of an answer, and whether its closing fence is there. An answer without a fence is code as it is.
///
/// Whatever follows the closing fence changes nothing, so generation may end there.
pub fn first_block(answer: &str) -> (String, bool) {
    let mut block: Option<Vec<&str>> = None;
    for line in answer.split_inclusive('\n') {
        let fence = line.trim_start().starts_with("```");
        match &mut block {
            None if fence => block = Some(vec![]),
            None => {}
            // A fence that is still growing may become the opening of something else; a line end settles it.
            Some(lines) if fence && line.ends_with('\n') => return (lines.concat(), true),
            Some(lines) if fence => return (lines.concat(), line.trim() == "```"),
            Some(lines) => lines.push(line),
        }
    }
    (block.map_or_else(|| answer.to_owned(), |lines| lines.concat()), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_block_is_what_stands_between_its_fences() {
        let answer = "Sure:\n\n```python\ndef f():\n    return 1\n```\n\nand\n```\nother\n```\n";
        assert_eq!(first_block(answer), ("def f():\n    return 1\n".into(), true));
        assert_eq!(first_block("1. So:\n   ```py\n   x = 1\n   ```"), ("   x = 1\n".into(), true));
    }

    #[test]
    fn a_block_that_was_cut_short_is_taken_as_far_as_it_goes() {
        assert_eq!(first_block("```python\ndef f():\n    ret"), ("def f():\n    ret".into(), false));
        assert_eq!(first_block("```python\nx = 1\n``"), ("x = 1\n``".into(), false));
        assert_eq!(first_block("```python"), (String::new(), false));
    }

    #[test]
    fn an_answer_without_a_fence_is_code() {
        assert_eq!(first_block("def f(): pass"), ("def f(): pass".into(), false));
    }
}
