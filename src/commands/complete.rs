//! `rynd complete`: the text that belongs at a cursor, once, or for an editor as a Language Server.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::load::{self, EngineFlags, ModelOrDefault};
use super::sampling::SamplingFlags;
use super::terminal;
use super::{input, interrupt, lsp};
use crate::catalog::{Catalog, Error as CatalogError, Model};
use crate::complete::{self, CompleteError, Completion, Options, Request, check_fim, relevant};
use crate::engine::{Engine, EngineConfig};
use crate::generate::Finish;
use crate::sampler::SamplerConfig;

/// Fill in the middle: print the text that belongs at a cursor
///
/// The cursor is a position in a file, a prefix and a suffix, or a marker in the text on stdin. With --stdio it is where
/// an editor says, again and again: a Language Server with inline completion and completion.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd complete --file src/main.rs --line 12 --col 5
  rynd complete model.gguf --prefix 'def add(a, b):' --suffix ''
  printf 'fn max(a: i32, b: i32) -> i32 {<CURSOR>}' | rynd complete model.gguf
  rynd complete model.gguf --file app.py --line 3 --col 1 --candidates 3 --temp 0.6 --json
  rynd complete --stdio --max-ms 2000")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelOrDefault,
    /// Serve an editor: a Language Server on standard input and output
    #[arg(long, conflicts_with_all = ["file", "prefix", "suffix", "json"])]
    stdio: bool,
    /// With --stdio: wait so long for a newer request before a keystroke's one is computed
    #[arg(long, value_name = "MS", default_value = "60", requires = "stdio")]
    debounce_ms: u64,
    /// With --stdio: print what each request cost on stderr
    #[arg(short, long, requires = "stdio")]
    verbose: bool,
    /// The open file
    #[arg(long, value_name = "FILE", requires = "line", conflicts_with_all = ["prefix", "suffix"])]
    file: Option<PathBuf>,
    /// Line of the cursor, from 1
    #[arg(long, value_name = "N", requires = "file", value_parser = load::at_least_one())]
    line: Option<usize>,
    /// Column of the cursor in characters, from 1: it stands before that character [default: the line's end]
    #[arg(long, value_name = "N", requires = "file", value_parser = load::at_least_one())]
    col: Option<usize>,
    /// Text before the cursor
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// Text behind the cursor
    #[arg(long, value_name = "TEXT")]
    suffix: Option<String>,
    /// What marks the cursor in the text on stdin
    #[arg(long, value_name = "TEXT", default_value = "<CURSOR>")]
    marker: String,
    /// Repository whose related files go into the prompt [default: the git repository around the file]
    #[arg(long, value_name = "DIR", requires = "file")]
    repo: Option<PathBuf>,
    /// Only the open file goes into the prompt
    #[arg(long, conflicts_with = "repo")]
    no_repo: bool,
    /// Prompt tokens, at most
    #[arg(long, value_name = "TOKENS", default_value = "2048", value_parser = load::at_least_one())]
    prompt_tokens: usize,
    /// Tokens of the prompt behind the cursor, at most; each keystroke in an editor computes them anew [default: 512, with
    /// --stdio 128]
    #[arg(long, value_name = "TOKENS")]
    suffix_tokens: Option<usize>,
    /// Tokens to generate, at most
    #[arg(short = 'n', long, value_name = "TOKENS", default_value = "128", value_parser = load::at_least_one())]
    tokens: usize,
    /// Stop after this time, with what there is
    #[arg(long, value_name = "MS")]
    max_ms: Option<u64>,
    /// Completions to make; more than one needs a --temp above 0
    #[arg(long, value_name = "K", default_value = "1", value_parser = load::at_least_one())]
    candidates: usize,
    /// Print a JSON array with text, end and token counts of each candidate
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut sampling = arguments.sampling.config_or_greedy()?;
    if arguments.candidates > 1 && sampling.temperature == 0.0 {
        bail!("--candidates {} of the likeliest text are all the same; add --temp 0.6", arguments.candidates);
    }
    if arguments.stdio {
        return serve(arguments, sampling);
    }
    let request = request(arguments)?;
    let mut engine = load(arguments)?;
    let tokenizer = load::tokenizer(engine.gguf())?;
    arguments.engine.keep_on_disk(&mut engine, &tokenizer);
    interrupt::watch()?;
    let mut completions = vec![];
    for candidate in 0..arguments.candidates {
        if candidate > 0 {
            sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(1));
        }
        let options = options(arguments, sampling.clone());
        completions.push(complete::complete(&mut engine, &tokenizer, &request, &options, interrupt::asked)?);
        if interrupt::asked() {
            break;
        }
    }
    print(&completions, arguments.json)?;
    Ok(if interrupt::asked() { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::SUCCESS })
}

fn load(arguments: &Arguments) -> Result<Engine> {
    let model = arguments.model.get()?;
    can_complete(model.name())?;
    let engine = model.load(&config(arguments))?;
    let half = engine.context() / 2;
    if arguments.tokens > half && arguments.prompt_tokens > half {
        // A lost warning is no reason to fail.
        let _ = writeln!(
            terminal::stderr(),
            "rynd: a context of {} tokens has little room for -n {} and a prompt, which may take half of it (-c makes room)",
            engine.context(),
            arguments.tokens
        );
    }
    Ok(engine)
}

/// A model that would have to be fetched first, and could not complete then, is refused.
fn can_complete(model: &str) -> Result<()> {
    if Path::new(model).is_file() {
        return Ok(());
    }
    let catalog = Catalog::open()?;
    if let Ok(Model::Named(entry)) = catalog.find(model)
        && entry.fim.is_none()
        && matches!(catalog.resolve(model), Err(CatalogError::Missing { .. }))
    {
        return Err(CompleteError::NoFim).with_context(|| format!("the model '{}' was not fetched", entry.name));
    }
    Ok(())
}

fn serve(arguments: &Arguments, sampling: SamplerConfig) -> Result<ExitCode> {
    let mut engine = load(arguments)?;
    let tokenizer = load::tokenizer(engine.gguf())?;
    arguments.engine.keep_on_disk(&mut engine, &tokenizer);
    check_fim(&tokenizer)?;
    let config = lsp::Config {
        options: options(arguments, sampling),
        candidates: arguments.candidates,
        debounce: Duration::from_millis(arguments.debounce_ms),
        verbose: arguments.verbose,
    };
    lsp::serve(engine, tokenizer, config)
}

/// Prompt tokens computed together where a request must be able to stop soon: the clock and the client are heard between
/// two runs.
const PROMPT_RUN: usize = 64;

fn config(arguments: &Arguments) -> EngineConfig {
    let config = arguments.engine.config();
    let soon = arguments.stdio || arguments.max_ms.is_some();
    match soon {
        true => EngineConfig { batch: config.batch.min(PROMPT_RUN), most_batch: None, ..config },
        false => config,
    }
}

fn options(arguments: &Arguments, sampling: SamplerConfig) -> Options {
    Options {
        max_tokens: arguments.tokens,
        time: arguments.max_ms.map(Duration::from_millis),
        prompt_tokens: arguments.prompt_tokens,
        suffix_tokens: arguments.suffix_tokens.unwrap_or(if arguments.stdio { 128 } else { 512 }),
        sampling,
    }
}

fn print(completions: &[Completion], as_json: bool) -> Result<()> {
    let mut out = terminal::stdout();
    if as_json {
        let list: Vec<_> = completions
            .iter()
            .map(|c| {
                json!({
                    "text": c.text,
                    "finish": match c.finish {
                        Finish::End => "end",
                        Finish::Stop => "stop",
                        Finish::Length => "length",
                        Finish::Interrupted => "time",
                    },
                    "prompt_tokens": c.prompt_tokens,
                    "cached_tokens": c.cached_tokens,
                    "generated_tokens": c.generated_tokens,
                    "ms": c.elapsed.as_millis() as u64,
                })
            })
            .collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
    } else {
        for (i, completion) in completions.iter().enumerate() {
            if i > 0 {
                writeln!(out, "\n--- candidate {}", i + 1)?;
            }
            writeln!(out, "{}", completion.text)?;
        }
    }
    Ok(out.flush()?)
}

fn request(arguments: &Arguments) -> Result<Request> {
    let Some(file) = &arguments.file else {
        let (prefix, suffix) = match (&arguments.prefix, &arguments.suffix) {
            (None, None) => {
                let text = input::read_stdin()?;
                let (prefix, suffix) = text.split_once(&arguments.marker).with_context(|| {
                    format!("the text on stdin has no cursor; put {:?} where it is", arguments.marker)
                })?;
                (prefix.to_owned(), suffix.to_owned())
            }
            (prefix, suffix) => (prefix.clone().unwrap_or_default(), suffix.clone().unwrap_or_default()),
        };
        return Ok(Request { prefix, suffix, ..Request::default() });
    };
    let text = input::read_file(file)?;
    let at = offset(&text, arguments.line.unwrap_or(1), arguments.col)
        .with_context(|| format!("{}: the cursor is outside of the file", file.display()))?;
    let mut request = Request {
        prefix: text[..at].to_owned(),
        suffix: text[at..].to_owned(),
        file: Some(file.clone()),
        ..Request::default()
    };
    let open = file.canonicalize().with_context(|| file.display().to_string())?;
    let root = match &arguments.repo {
        Some(root) => Some(root.canonicalize().with_context(|| root.display().to_string())?),
        None if arguments.no_repo => None,
        None => git_root(&open),
    };
    if let Some(root) = root {
        let open = open
            .strip_prefix(&root)
            .with_context(|| format!("{} is not inside of the repository {}", file.display(), root.display()))?;
        // Four bytes a token is a safe guess; what does not fit is left out when the prompt is built.
        request.files = relevant(&root, open, &request.prefix, &request.suffix, arguments.prompt_tokens * 4);
        request.repository = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        request.path = Some(slashes(open));
    }
    Ok(request)
}

/// The innermost folder around a file that git keeps.
fn git_root(file: &Path) -> Option<PathBuf> {
    file.ancestors().skip(1).find(|folder| folder.join(".git").exists()).map(Path::to_owned)
}

fn slashes(path: &Path) -> String {
    path.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Byte offset of a line and column, both from 1; without a column the line's end.
fn offset(text: &str, line: usize, col: Option<usize>) -> Option<usize> {
    let bytes = text.as_bytes();
    // A line ends with \n, \r\n or a lone \r, and the cursor stands before that.
    let ends = (0..bytes.len()).filter(|&i| bytes[i] == b'\n' || bytes[i] == b'\r' && bytes.get(i + 1) != Some(&b'\n'));
    let start = if line == 1 { 0 } else { { ends }.nth(line - 2)? + 1 };
    let rest = text[start..].split(['\n', '\r']).next().unwrap_or_default();
    let within = match col {
        None => rest.len(),
        Some(col) => rest.char_indices().map(|(at, _)| at).chain([rest.len()]).nth(col - 1)?,
    };
    Some(start + within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_a_line_and_a_column_in_characters() {
        let text = "ab\nçd\n";
        assert_eq!(offset(text, 1, None), Some(2));
        assert_eq!(offset(text, 2, Some(2)), Some(5));
        assert_eq!(offset(text, 2, Some(3)), Some(6));
        assert_eq!(offset(text, 3, Some(1)), Some(7));
        assert_eq!(offset(text, 2, Some(4)), None);
        assert_eq!(offset(text, 4, None), None);
    }

    #[test]
    fn the_cursor_stands_before_any_line_break() {
        for (text, line_2, end_of_2) in [("ab\r\ncd\r\n", 4, 6), ("ab\rcd\r", 3, 5), ("ab\ncd\n", 3, 5)] {
            assert_eq!(offset(text, 1, None), Some(2), "{text:?}");
            assert_eq!(offset(text, 2, Some(1)), Some(line_2), "{text:?}");
            assert_eq!(offset(text, 2, None), Some(end_of_2), "{text:?}");
            assert_eq!(offset(text, 3, None), Some(text.len()), "{text:?}");
            assert_eq!(offset(text, 1, Some(4)), None, "{text:?}");
        }
    }
}
