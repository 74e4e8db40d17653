//! What Tab offers: commands, their arguments, and paths behind `@`, `/read`, `/load` and `/save`.

use std::path::Path;

use reedline::{Completer, Span, Suggestion};

use super::{settings, slash};

/// Offers words.
pub struct Words {
    /// Names for /model.
    pub models: Vec<String>,
}

impl Completer for Words {
    fn complete(&mut self, line: &str, pos: usize) -> Vec<Suggestion> {
        let before = &line[..pos];
        let word_start = before.rfind(char::is_whitespace).map_or(0, |at| at + 1);
        let word = &before[word_start..];
        let offer = |values: Vec<String>, start: usize, space: bool| {
            let suggestion = |value| Suggestion {
                value,
                span: Span::new(start, pos),
                append_whitespace: space,
                ..Suggestion::default()
            };
            values.into_iter().map(suggestion).collect()
        };
        let with_prefix = |names: Vec<String>, prefix: &str| -> Vec<String> {
            names.into_iter().filter(|name| name.starts_with(prefix)).collect()
        };
        if let Some(name) = word.strip_prefix('/').filter(|_| word_start == 0) {
            let names = slash::COMMANDS.iter().map(|(name, ..)| (*name).to_owned()).collect();
            let names = with_prefix(names, name).into_iter().map(|name| format!("/{name}")).collect();
            return offer(names, 0, true);
        }
        if let Some((command, argument)) = before.split_once(' ').filter(|_| before.starts_with('/')) {
            let start = before.len() - argument.trim_start().len();
            match command {
                "/read" | "/load" | "/save" => return offer(paths(argument.trim_start(), false), start, false),
                "/model" => return offer(with_prefix(self.models.clone(), argument.trim_start()), start, false),
                "/set" => {
                    let keys = settings::KEYS.iter().map(|(key, _)| format!("{key}=")).collect();
                    return offer(with_prefix(keys, word), word_start, false);
                }
                _ => {}
            }
        }
        match word.strip_prefix('@') {
            Some(path) => offer(paths(path, true), word_start, false),
            None => vec![],
        }
    }
}

/// Files and folders that the text may become, those with spaces in quotes.
fn paths(text: &str, mention: bool) -> Vec<String> {
    let bare = text.trim_start_matches('"');
    let (folder, name) = bare.rsplit_once('/').map_or(("", bare), |(_, name)| (&bare[..bare.len() - name.len()], name));
    let at = Path::new(if folder.is_empty() { "." } else { folder });
    let Ok(entries) = std::fs::read_dir(at) else { return vec![] };
    let mut found: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            let hidden = file.starts_with('.') && !name.starts_with('.');
            let slash = if entry.path().is_dir() { "/" } else { "" };
            (file.starts_with(name) && !hidden).then(|| format!("{folder}{file}{slash}"))
        })
        .collect();
    found.sort();
    let sign = if mention { "@" } else { "" };
    let quoted = |path: String| match path.contains(' ') {
        true if path.ends_with('/') => format!("{sign}\"{path}"),
        true => format!("{sign}\"{path}\""),
        false => format!("{sign}{path}"),
    };
    found.into_iter().map(quoted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(line: &str) -> Vec<String> {
        let mut words = Words { models: vec!["qwen2.5-coder-0.5b".into(), "smollm2-135m".into()] };
        words.complete(line, line.len()).into_iter().map(|s| format!("{}{}", &line[..s.span.start], s.value)).collect()
    }

    #[test]
    fn commands_settings_models_and_paths_are_completed() {
        assert_eq!(offered("/he"), ["/help"]);
        assert_eq!(offered("/s"), ["/system", "/save", "/set", "/stats"]);
        assert_eq!(offered("/set temp=1 top_"), ["/set temp=1 top_k=", "/set temp=1 top_p="]);
        assert_eq!(offered("/model q"), ["/model qwen2.5-coder-0.5b"]);
        assert_eq!(offered("see @src/comm"), ["see @src/commands/"]);
        assert_eq!(offered("/read Cargo.t"), ["/read Cargo.toml"]);
        assert!(offered("plain words").is_empty());
        assert!(offered("text with /he").is_empty());
    }

    #[test]
    fn paths_with_spaces_are_quoted() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a b.txt"), "").unwrap();
        let start = format!("@{}/a", folder.path().display());
        assert_eq!(offered(&start), [format!("@\"{}/a b.txt\"", folder.path().display())]);
    }
}
