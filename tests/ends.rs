//! A right answer survives: hard cases, and real files whose own text is fed as if a perfect model had written it.
//!
//! The files are those that a machine with this project has: Python's standard library, the sources of our dependencies,
//! npm's own scripts. A family without files, or with too few, is skipped with a line that says so.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use rynd::complete::Ends;

struct Case {
    name: &'static str,
    extension: &'static str,
    prefix: &'static str,
    suffix: &'static str,
    written: &'static str,
    right: &'static str,
}

const CASES: &[Case] = &[
    Case {
        name: "brackets in strings",
        extension: "py",
        prefix: "def f(s):\n    # remove closing parentheses\n    return s.replace(",
        suffix: ")\n",
        written: "')', '')",
        right: "')', ''",
    },
    Case {
        name: "a closer that the suffix's one does not pair with",
        extension: "rs",
        prefix: "fn main() {\n    assert_eq!(\n        parse(\"x\"),\n        Err(ParseError::Unexpected",
        suffix: "\n    );\n}\n",
        written: "Char('x'))",
        right: "Char('x'))",
    },
    Case {
        name: "a bracket closed and another opened",
        extension: "py",
        prefix: "def last_char(rows, i):\n    # the last character of the second cell of row i\n    return rows[i",
        suffix: "].upper()\n",
        written: "][1",
        right: "][1",
    },
    Case {
        name: "the inner of two brackets",
        extension: "js",
        prefix: "// print every argument as JSON, separated by spaces\nconsole.log(args.map(JSON.stringify",
        suffix: ");\n",
        written: ").join(' '));",
        right: ").join(' ')",
    },
    Case {
        name: "an end that only looks like the suffix's",
        extension: "rb",
        prefix: "def print_even(xs)\n  xs.each do |x|\n    if x.even?\n      ",
        suffix: "\n  end\nend\n",
        written: "puts x\n    end",
        right: "puts x\n    end",
    },
    Case {
        name: "closers of a prefix that begins within its file",
        extension: "js",
        prefix: "  it('is zero without numbers', ",
        suffix: "\n});\n",
        written: "() => {\n    expect(sum([])).toBe(0);\n  });",
        right: "() => {\n    expect(sum([])).toBe(0);\n  });",
    },
    Case {
        name: "closers one level deeper than the suffix's",
        extension: "js",
        prefix: "  fs.readFile('a.txt', (err, a) => {\n    // then read b.txt the same way and compare\n    ",
        suffix: "\n  });\n});\n",
        written: "fs.readFile('b.txt', (err, b) => {\n      console.log(a.equals(b));\n    });",
        right: "fs.readFile('b.txt', (err, b) => {\n      console.log(a.equals(b));\n    });",
    },
    Case {
        name: "a doubled indentation",
        extension: "py",
        prefix: "def f(x):\n    y = x\n    ",
        suffix: "\n",
        written: "    return y",
        right: "return y",
    },
    Case {
        name: "an indentation that is only begun",
        extension: "py",
        prefix: "def f(x):\n    if x:\n    ",
        suffix: "\n",
        written: "    return y",
        right: "    return y",
    },
    Case {
        name: "the line above once more",
        extension: "py",
        prefix: "def f(x):\n    count += 1\n    ",
        suffix: "\n",
        written: "count += 1\n    count += 1",
        right: "",
    },
    Case {
        name: "the line below",
        extension: "py",
        prefix: "def f(x):\n    count += 1\n    ",
        suffix: "\n    return count\n",
        written: "total = count",
        right: "total = count",
    },
];

#[test]
fn right_answers_of_the_hard_cases_survive_also_when_the_language_is_guessed() {
    let mut wrong = vec![];
    for case in CASES {
        let name = format!("a.{}", case.extension);
        for path in [None, Some(Path::new(&name))] {
            let ends = Ends::new(case.prefix, case.suffix, path);
            let mut check = |what: &str, kept: String| {
                if kept != case.right {
                    wrong.push(format!("{} ({path:?}, {what}): {kept:?}", case.name));
                }
            };
            check("as written", ends.finish(case.written, false));
            check("run on", ends.finish(&format!("{}{}", case.written, case.suffix), false));
            // As it grows, it must not be ended too early.
            for (at, _) in case.written.char_indices() {
                if ends.find(&case.written[..at]).is_some_and(|end| end < case.right.len()) {
                    check("growing", case.written[..at].to_owned());
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_answer_that_a_limit_cuts_ends_with_a_whole_line() {
    let ends = Ends::new("def f():\n    ", "\n", None);
    assert_eq!(ends.finish("a = 1\n    b = fo", true), "a = 1");
    assert_eq!(ends.finish("a = 1\n    b = fo", false), "a = 1\n    b = fo");
    assert_eq!(ends.finish("a = some_long_na", true), "a = some_long_na");
}

/// A generator that gives the same places in every run.
struct Places(u64);

impl Places {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

fn indent(line: &str) -> usize {
    line.chars()
        .take_while(|c| *c == ' ' || *c == '\t')
        .fold(0, |at, c| if c == '\t' { at / 8 * 8 + 8 } else { at + 1 })
}

/// Places where a text may be completed: the kind, and where the answer begins and ends.
fn answers(text: &str, places: &mut Places) -> Vec<(&'static str, usize, usize)> {
    let starts: Vec<usize> = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let line = |i: usize| text[starts[i]..].split('\n').next().unwrap();
    let floor = |mut at: usize, line: &str| {
        while !line.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let mut found = vec![];
    for _ in 0..40 {
        let i = places.below(starts.len());
        let (whole, start) = (line(i).trim_end(), starts[i]);
        let first = whole.len() - whole.trim_start().len();
        if whole.len() - first < 4 {
            continue;
        }
        let from = floor(first + places.below(whole.len() - first), whole);
        found.push(("to the line's end", start + from, start + whole.len()));
        let closers: Vec<usize> = whole.char_indices().filter(|(_, c)| ")]}".contains(*c)).map(|(at, _)| at).collect();
        if let Some(&end) = closers.get(places.below(closers.len())).filter(|end| **end > first) {
            let from = floor(first + places.below(end - first), whole);
            found.push(("in a line, closers behind", start + from, start + end));
        }
        let to = floor(from + places.below(whole.len() - from), whole);
        found.push(("in a line", start + from, start + to));

        // The block below a line that opens one: from the line's end, and from the first line of the block.
        let base = indent(whole);
        if whole.ends_with([':', '{']) && !whole.trim_start().starts_with(['#', '/', '*']) && i + 1 < starts.len() {
            let block = (i + 1..starts.len()).take_while(|&j| line(j).trim().is_empty() || indent(line(j)) > base);
            let last = block.filter(|&j| !line(j).trim().is_empty()).last();
            if let Some(last) = last.filter(|last| last - i <= 40) {
                let end = starts[last] + line(last).trim_end().len();
                found.push(("a block", start + whole.len(), end));
                let below = line(i + 1);
                if !below.trim().is_empty() {
                    let first = below.len() - below.trim_start().len();
                    found.push(("a block's lines", starts[i + 1] + first, end));
                }
            }
        }

        // Some statements of a block, closing nothing that they did not open.
        let (mut depth, mut last) = (0_i32, None);
        for j in (i..starts.len()).take(1 + places.below(5)) {
            let text = line(j);
            let mut low = false;
            for c in text.chars() {
                depth += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
                low |= depth < 0;
            }
            if text.trim().is_empty() || indent(text) < base || low {
                break;
            }
            last = Some(j);
        }
        if let Some(last) = last {
            found.push(("lines of a block", start + first, starts[last] + line(last).trim_end().len()));
        }
    }
    found.retain(|&(_, from, to)| from < to && !text[from..to].trim().is_empty());
    found
}

fn walk(folder: &Path, extensions: &[&str], skip: &[&str], found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_symlink() || skip.iter().any(|skip| name.starts_with(skip)) {
            continue;
        }
        if path.is_dir() {
            walk(&path, extensions, skip, found);
        } else if extensions.contains(&extension.as_str())
            && std::fs::metadata(&path).is_ok_and(|meta| (2_000..100_000).contains(&meta.len()))
        {
            found.push(path);
        }
    }
}

/// What a program prints, without the line's end; none where it is not there.
fn says(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// Every family with the folders where its files are.
fn families() -> Vec<(&'static str, Vec<String>, &'static [&'static str])> {
    let cargo = std::env::var("CARGO_HOME").ok().or_else(|| Some(format!("{}/.cargo", std::env::var("HOME").ok()?)));
    let registry = cargo.map(|home| format!("{home}/registry/src"));
    let python = says("python3", &["-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"]);
    let npm = says("npm", &["root", "-g"]).map(|root| format!("{root}/npm"));
    let headers = ["/usr/include/linux", "/usr/include/c++"].map(str::to_owned);
    vec![
        ("Python", python.into_iter().collect(), &["py"]),
        ("Rust", registry.clone().into_iter().collect(), &["rs"]),
        ("C", registry.into_iter().chain(headers).collect(), &["c", "h", "cc"]),
        ("JavaScript", npm.into_iter().collect(), &["js"]),
    ]
}

/// Not written by hand, or not by people who indent.
const GENERATED: [&str; 9] =
    ["site-packages", "windows", "linux-raw-sys", "web-sys", "js-sys", "glow", "r-efi", "unicode", "lib2to3"];
/// Of ten thousand answers; with fewer answers one is allowed.
const MOST_WRONG: usize = 20;

#[test]
fn the_text_of_real_files_survives_as_an_answer_and_is_found_again_where_a_model_runs_on() {
    let mut report = vec![];
    let mut wrong = vec![];
    for (family, folders, extensions) in families() {
        let mut files = vec![];
        folders.iter().for_each(|folder| walk(Path::new(folder), extensions, &GENERATED, &mut files));
        if files.len() < 15 {
            println!("SKIPPED: {family} has {} files here, in {folders:?}", files.len());
            continue;
        }
        let mut places = Places(7);
        let mut cells: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
        for file in files.iter().step_by((files.len() / 120).max(1)) {
            let Ok(text) = std::fs::read_to_string(file) else { continue };
            let text = text.replace("\r\n", "\n");
            if text.lines().any(|line| line.len() > 400) {
                continue;
            }
            for (cell, from, to) in answers(&text, &mut places) {
                let (prefix, answer, suffix) = (&text[..from], &text[from..to], &text[to..]);
                let ends = Ends::new(prefix, suffix, Some(file));
                let [count, bad, found] = cells.entry(cell).or_default();
                *count += 1;
                let early = ends.find(answer).is_some_and(|at| !answer[at..].trim().is_empty());
                let kept = ends.finish(answer, false);
                if early || kept.trim_end() != answer.trim_end() {
                    *bad += 1;
                    let line = prefix.matches('\n').count() + 1;
                    wrong.push(format!("{family}, {cell}: {}:{line}: {answer:?} became {kept:?}", file.display()));
                }
                // A model that does not stop goes on as the file does.
                let more: String = suffix.chars().take(300).collect();
                let kept = ends.finish(&format!("{answer}{more}"), true);
                *found += usize::from(kept.trim_end() == answer.trim_end());
            }
        }
        for (cell, [count, bad, found]) in cells {
            report.push(format!(
                "{family:10} {cell:26} {bad:3} of {count:5} cut wrongly, {found} of those that run on cut right"
            ));
            println!("{}", report[report.len() - 1]);
            assert!(bad <= 1 || bad * 10_000 <= count * MOST_WRONG, "{}", wrong.join("\n"));
            // Never to cut would be easy.
            let least = if cell.starts_with("in a line") { 50 } else { 85 };
            assert!(found * 100 >= count * least, "{}", report.join("\n"));
        }
    }
}
