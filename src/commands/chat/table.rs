//! Tables, row by row: the first rows decide the widths, and a wider cell later shifts only its own row.
//!
//! The head waits for the first row of the body, so that both are aligned. A table that is wider than the terminal is
//! given out without padding, for the terminal to wrap.

use super::inline;
use super::paint::{BOLD, DIM, Style, paint};
use super::wrap::visible;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Align {
    Left,
    Right,
    Centre,
}

/// A table of which rows are still to come.
#[derive(Debug, Default)]
pub struct Table {
    /// Lines not given out yet: the head, the rule below it.
    held: Vec<String>,
    widths: Vec<usize>,
    aligns: Vec<Align>,
}

impl Table {
    /// Takes the next line of the table.
    pub fn row(&mut self, out: &mut String, line: &str, width: usize) {
        if !self.widths.is_empty() {
            return self.write(out, line, false);
        }
        self.held.push(line.to_owned());
        if self.held.len() == 2 && alignments(line).is_none() {
            // No rule below the head: these are lines that happen to start with a bar.
            self.held.drain(..).for_each(|line| out.push_str(&format!("{line}\n")));
        } else if self.held.len() == 3 {
            self.begin(out, width);
        }
    }

    /// No more rows follow.
    pub fn end(&mut self, out: &mut String, width: usize) {
        match self.held.len() {
            0 => {}
            1 => self.held.drain(..).for_each(|line| out.push_str(&format!("{line}\n"))),
            _ => self.begin(out, width),
        }
    }

    fn begin(&mut self, out: &mut String, width: usize) {
        let held = std::mem::take(&mut self.held);
        self.aligns = held.get(1).and_then(|rule| alignments(rule)).unwrap_or_default();
        let shown = |line: &String| cells(line).iter().map(|cell| visible(&painted(cell, ""))).collect::<Vec<_>>();
        let (head, body) = (shown(&held[0]), held.get(2).map(shown).unwrap_or_default());
        let columns = head.len().max(body.len());
        let at = |row: &[usize], i| row.get(i).copied().unwrap_or(0);
        self.widths = (0..columns).map(|i| at(&head, i).max(at(&body, i)).max(1)).collect();
        if self.widths.iter().sum::<usize>() + 3 * columns.saturating_sub(1) >= width {
            self.widths.fill(0);
        }
        self.write(out, &held[0], true);
        let rule: Vec<String> = self.widths.iter().map(|&w| "─".repeat(if w == 0 { 3 } else { w })).collect();
        paint(out, DIM, &rule.join("─┼─"));
        out.push('\n');
        if let Some(body) = held.get(2) {
            self.write(out, body, false);
        }
    }

    fn write(&self, out: &mut String, line: &str, is_head: bool) {
        let cells = cells(line);
        for (i, cell) in cells.iter().enumerate() {
            if i > 0 {
                paint(out, DIM, " │ ");
            }
            let text = painted(cell, if is_head { BOLD } else { "" });
            let blank = self.widths.get(i).copied().unwrap_or(0).saturating_sub(visible(&text));
            let left = match self.aligns.get(i) {
                Some(Align::Right) => blank,
                Some(Align::Centre) => blank / 2,
                Some(Align::Left) | None => 0,
            };
            out.push_str(&" ".repeat(left));
            out.push_str(&text);
            if i + 1 < cells.len() {
                out.push_str(&" ".repeat(blank - left));
            }
        }
        out.push('\n');
    }
}

fn painted(cell: &str, base: Style) -> String {
    let mut out = String::new();
    for (style, text) in inline::spans(cell) {
        paint(&mut out, if style.is_empty() { base } else { style }, &text);
    }
    out
}

/// The cells of a row; a bar inside of code or behind a backslash parts none.
fn cells(line: &str) -> Vec<&str> {
    let line = line.trim();
    let inner = line.strip_prefix('|').unwrap_or(line);
    let (mut found, mut start, mut code, mut escaped) = (vec![], 0, false, false);
    for (at, c) in inner.char_indices() {
        match c {
            '`' => code = !code,
            '|' if !code && !escaped => {
                found.push(inner[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    if !inner[start..].trim().is_empty() {
        found.push(inner[start..].trim());
    }
    found
}

/// What the rule below a head says, if the line is one.
fn alignments(line: &str) -> Option<Vec<Align>> {
    let cells = cells(line);
    let one = |cell: &&str| {
        let dashes = cell.trim_start_matches(':').trim_end_matches(':');
        let is_rule = !dashes.is_empty() && dashes.bytes().all(|byte| byte == b'-');
        is_rule.then_some(match (cell.starts_with(':'), cell.ends_with(':')) {
            (true, true) => Align::Centre,
            (false, true) => Align::Right,
            (_, false) => Align::Left,
        })
    };
    if cells.is_empty() { None } else { cells.iter().map(one).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(lines: &[&str], width: usize) -> String {
        let (mut table, mut out) = (Table::default(), String::new());
        lines.iter().for_each(|line| table.row(&mut out, line, width));
        table.end(&mut out, width);
        let plain = ["\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[36m"];
        plain.iter().fold(out, |text, code| text.replace(code, ""))
    }

    #[test]
    fn columns_are_aligned_by_the_first_rows() {
        let lines = ["| name | n |", "|:--|--:|", "| `a|b` | 100 |", "| **x** | 7 |", "| much wider | 1 |"];
        let expected = "name │   n\n─────┼────\na|b  │ 100\nx    │   7\nmuch wider │   1\n";
        assert_eq!(table(&lines, 80), expected);
    }

    #[test]
    fn a_head_alone_and_rows_without_a_rule_are_given_out() {
        assert_eq!(table(&["| a | b |"], 80), "| a | b |\n");
        assert_eq!(table(&["| a | b |", "|--|--|"], 80), "a │ b\n──┼──\n");
        assert_eq!(table(&["|x| > 0", "| is true"], 80), "|x| > 0\n| is true\n");
    }

    #[test]
    fn a_table_wider_than_the_terminal_is_not_padded() {
        let lines = ["| name | what it does |", "|--|--|", "| a | something long enough |", "| bb | short |"];
        assert_eq!(table(&lines, 20).lines().last(), Some("bb │ short"));
    }
}
