//! Tables, row by row: the first rows decide the widths, and a wider cell later widens its column from there on.
//!
//! The head waits for the first row of the body, so that both are aligned. Where the terminal is too narrow, the widest
//! columns give way and their cells go over several lines.

use unicode_width::UnicodeWidthStr;

use super::inline;
use super::paint::{BOLD, DIM, Style, paint};

/// Narrower columns help nobody; then the terminal wraps.
const LEAST_COLUMNS: usize = 6;

/// The spans of a cell.
type Cell = Vec<(Style, String)>;

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
            return self.write(out, line, "", width);
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
        for line in [held.first(), held.get(2)].into_iter().flatten() {
            self.widen(&cells(line).into_iter().map(inline::spans).collect::<Vec<_>>());
        }
        self.fit(width);
        self.write(out, &held[0], BOLD, width);
        let rule: Vec<String> = self.widths.iter().map(|&w| "─".repeat(w)).collect();
        paint(out, DIM, &rule.join("─┼─"));
        out.push('\n');
        if let Some(body) = held.get(2) {
            self.write(out, body, "", width);
        }
    }

    fn widen(&mut self, row: &[Cell]) {
        self.widths.resize(self.widths.len().max(row.len()), 1);
        for (width, cell) in self.widths.iter_mut().zip(row) {
            *width = (*width).max(cell.iter().map(|(_, text)| text.width()).sum());
        }
    }

    /// Narrows the widest columns until all fit.
    fn fit(&mut self, width: usize) {
        let columns = self.widths.len();
        let room = width.saturating_sub(1 + 3 * columns.saturating_sub(1)).max(columns * LEAST_COLUMNS);
        while self.widths.iter().sum::<usize>() > room {
            let Some(widest) = self.widths.iter_mut().max() else { return };
            *widest -= 1;
        }
    }

    fn write(&mut self, out: &mut String, line: &str, base: Style, width: usize) {
        let row: Vec<Cell> = cells(line).into_iter().map(inline::spans).collect();
        self.widen(&row);
        self.fit(width);
        let folded: Vec<_> = row.iter().zip(&self.widths).map(|(cell, &width)| fold(cell, base, width)).collect();
        for at in 0..folded.iter().map(Vec::len).max().unwrap_or(0) {
            let mut text = String::new();
            for (i, lines) in folded.iter().enumerate() {
                if i > 0 {
                    text.push(' ');
                    paint(&mut text, DIM, "│");
                    text.push(' ');
                }
                let (part, columns) = lines.get(at).map_or(("", 0), |(part, columns)| (part.as_str(), *columns));
                let blank = self.widths[i].saturating_sub(columns);
                let left = match self.aligns.get(i) {
                    Some(Align::Right) => blank,
                    Some(Align::Centre) => blank / 2,
                    Some(Align::Left) | None => 0,
                };
                text.push_str(&" ".repeat(left));
                text.push_str(part);
                text.push_str(&" ".repeat(blank - left));
            }
            out.push_str(text.trim_end_matches(' '));
            out.push('\n');
        }
    }
}

/// The lines of a cell, each painted and with its columns; words part where they must, long ones anywhere.
fn fold(cell: &Cell, base: Style, width: usize) -> Vec<(String, usize)> {
    let mut lines = vec![(String::new(), 0)];
    for (style, text) in cell {
        let style = if style.is_empty() { base } else { style };
        for word in text.split_inclusive(' ') {
            let bare = word.trim_end_matches(' ').width();
            for piece in if bare > width { word.split_inclusive(|_| true).collect() } else { vec![word] } {
                let needed = piece.trim_end_matches(' ').width();
                if lines.last().is_some_and(|(_, columns)| columns + needed > width && *columns > 0) {
                    lines.push((String::new(), 0));
                }
                let Some((line, columns)) = lines.last_mut() else { continue };
                // A blank that ends a line would only push the bar.
                let piece =
                    if columns.saturating_add(piece.width()) > width { piece.trim_end_matches(' ') } else { piece };
                paint(line, style, piece);
                *columns += piece.width();
            }
        }
    }
    lines
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
        let lines =
            ["| name | n |", "|:--|--:|", "| `a|b` | 100 |", "| **x** | 7 |", "| much wider | 1 |", "| y | 2 |"];
        let expected = "name │   n\n─────┼────\na|b  │ 100\nx    │   7\nmuch wider │   1\ny          │   2\n";
        assert_eq!(table(&lines, 80), expected);
    }

    #[test]
    fn a_head_alone_and_rows_without_a_rule_are_given_out() {
        assert_eq!(table(&["| a | b |"], 80), "| a | b |\n");
        assert_eq!(table(&["| a | b |", "|--|--|"], 80), "a │ b\n──┼──\n");
        assert_eq!(table(&["|x| > 0", "| is true"], 80), "|x| > 0\n| is true\n");
    }

    #[test]
    fn a_table_wider_than_the_terminal_folds_its_widest_cells() {
        let lines = ["| name | what it does |", "|--|--|", "| a | something that is long enough |", "| bb | short |"];
        let expected = "\
name │ what it does
─────┼─────────────
a    │ something
     │ that is long
     │ enough
bb   │ short
";
        assert_eq!(table(&lines, 20), expected);
        for width in 12..60 {
            let shown = table(&lines, width);
            assert!(shown.lines().all(|line| line.width() < width.max(16)), "{width}:\n{shown}");
        }
        assert_eq!(
            table(&["| abcdefghijkl | x |", "|--|--|"], 12),
            "abcdefghijk │ x\nl           │\n────────────┼──\n"
        );
    }
}
