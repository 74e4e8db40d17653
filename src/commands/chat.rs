//! `rynd chat`: talk to a model.
//!
//! At a terminal that is a loop with a line editor; with a pipe on standard input it is one question and its answer.
//! This file reads the arguments and chooses; the folder has the parts: the conversation and the timeline that holds
//! it, Markdown on its way to the screen, the commands behind a slash, files in and out.

mod attach;
mod complete;
mod conversation;
mod editor;
mod external;
mod highlight;
mod inline;
mod markdown;
mod kept;
mod model;
mod paint;
mod repl;
mod screen;
mod session;
mod settings;
mod slash;
mod stats;
mod table;
mod transcript;
mod wrap;

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::load::{self, EngineFlags};
use super::sampling::SamplingFlags;
use super::terminal;
use super::{input, interrupt};
use crate::generate::Finish;
use screen::{Look, Screen};
use session::{Chat, Step};
use transcript::Transcript;

/// Talk to a model
///
/// At a terminal, /help lists what can be done. With a pipe on standard input, all of it is one message: the answer goes
/// to standard output.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd chat
  rynd chat qwen3-coder-30b --system 'Answer in one sentence.'
  echo 'Write a Rust function that reverses a string.' | rynd chat --yes
  git diff | rynd chat -p 'Review this patch.'
  rynd chat --load plan.md --save plan.md
  rynd chat --continue

Environment:
  NO_COLOR         no colours and no Markdown, only the text
  VISUAL, EDITOR   the editor of /edit and Ctrl-O
  RYND_HOME        where models, configuration and the history are kept")]
pub struct Arguments {
    /// A GGUF file (of a split model any part), a short name of 'rynd list', or hf:owner/repo[:QUANT or FILE]
    /// [default: the default model of 'rynd list']
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// The first message; it comes before what is read from a pipe
    #[arg(short, long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Fetch a model that is not here without asking
    #[arg(long)]
    yes: bool,
    /// System prompt
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// A built-in chat template instead of the model's own: chatml
    #[arg(long, value_name = "NAME")]
    template: Option<String>,
    /// Read '<|im_end|>' and the like in messages as the tokens they name, not as text
    #[arg(long)]
    parse_special: bool,
    /// Tokens of an answer, at most [default: the rest of the context]
    #[arg(short = 'n', long, value_name = "TOKENS", value_parser = load::at_least_one())]
    tokens: Option<usize>,
    /// Go on with a saved chat (.json or .md)
    #[arg(long, value_name = "FILE")]
    load: Option<PathBuf>,
    /// Save the chat after every answer, as .json or .md
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Go on with the last chat
    #[arg(long = "continue", conflicts_with_all = ["load", "resume"])]
    last: bool,
    /// Go on with a chat that was kept: its name, the beginning of it, or a number (1 is the newest; '/chats' lists them)
    #[arg(long, value_name = "NAME", conflicts_with = "load")]
    resume: Option<String>,
    /// Keep no file of this chat
    #[arg(long)]
    forget: bool,
    /// Print speed, context and memory on stderr at the end
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let at_terminal = std::io::stdin().is_terminal();
    let message =
        if at_terminal { arguments.prompt.clone() } else { Some(piped_message(arguments.prompt.as_deref())?) };
    if let Some(path) = &arguments.save {
        transcript::check_name(path)?;
    }
    let resumed = match &arguments.resume {
        Some(name) => Some(kept::named(name)?),
        None if arguments.last => Some(kept::last()?),
        None => None,
    };
    let loaded = arguments.load.as_deref().or(resumed.as_deref()).map(Transcript::load).transpose()?;
    interrupt::watch()?;
    let source = model::Source::new(arguments.yes, arguments.template.clone(), arguments.parse_special)?;
    // A chat goes on with the model that it was with.
    let before = loaded.as_ref().filter(|_| resumed.is_some()).and_then(|chat| chat.model.clone());
    let name = arguments.model.clone().or(before).map_or_else(|| source.default_name(), Ok)?;
    let model = source.load(&name, &arguments.engine)?;
    let mut chat = Chat::new(model, arguments.sampling.clone(), arguments.tokens, arguments.system.as_deref());
    if let Some(transcript) = loaded {
        chat.take(transcript);
        if let Some(text) = &arguments.system {
            chat.conversation.set_system(text);
        }
    }
    settings::set(&mut chat, "")?;
    chat.files.extend(arguments.save.clone());
    if !arguments.forget && (at_terminal || resumed.is_some()) {
        chat.files.extend(resumed.or_else(kept::new));
    }
    let (chat, result) = if at_terminal {
        let mut repl = repl::Repl::new(chat, &source, &arguments.engine);
        let result = repl.run(message);
        (repl.chat, result.map(|()| ExitCode::SUCCESS))
    } else {
        let result = once(&mut chat, &message.unwrap_or_default());
        (chat, result)
    };
    // Also when the terminal went away: what was said is worth keeping, and that it could not be is an error at the end.
    if let Some(path) = arguments.save.as_deref().filter(|_| at_terminal || result.is_ok()) {
        chat.transcript().save(path)?;
    }
    let code = result?;
    if arguments.stats {
        write!(terminal::stderr(), "{}", stats::report(&chat))?;
    }
    Ok(code)
}

/// The whole of standard input as one message, behind the one that was given.
fn piped_message(prompt: Option<&str>) -> Result<String> {
    let piped = input::read_stdin()?;
    let piped = piped.strip_suffix('\n').unwrap_or(&piped);
    let parts: Vec<&str> = prompt.into_iter().chain([piped]).filter(|part| !part.trim().is_empty()).collect();
    if parts.is_empty() {
        bail!("the message is empty; give it on standard input or with -p TEXT");
    }
    Ok(parts.join("\n\n"))
}

/// One question, its answer on standard output.
fn once(chat: &mut Chat, message: &str) -> Result<ExitCode> {
    let mut err = terminal::stderr();
    if let Some(note) = &chat.model.note {
        writeln!(err, "rynd: note: {note}")?;
    }
    chat.conversation.ask(message);
    let mut screen = Screen::new(Look::of_stdout(), chat.model.engine.batch());
    let result = chat.reply(|step| match step {
        _ if interrupt::asked() => ControlFlow::Break(()),
        Step::Forgot(turns) => {
            // A lost note is no reason to fail.
            let _ = writeln!(err, "rynd: note: {turns} of the oldest turns no longer fit the context");
            ControlFlow::Continue(())
        }
        Step::Reading { done, total } => screen.reading(done, total),
        Step::Text(text) => screen.text(text),
    });
    let summary = result?;
    screen.finish().context("can not write the answer")?;
    if summary.finish == Finish::Length && arguments_allow_more(chat) {
        writeln!(err, "rynd: note: the context is full, so the answer ends here; -c gives more")?;
    }
    Ok(if summary.finish == Finish::Interrupted { ExitCode::from(interrupt::EXIT_CODE) } else { ExitCode::SUCCESS })
}

/// Whether the answer ended at the context and not at -n.
fn arguments_allow_more(chat: &Chat) -> bool {
    chat.used_tokens() + 1 >= chat.model.engine.context()
}
