//! `rynd tokenize`: text to token ids and back, by the vocabulary of the model file.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::input::{self, TextFlags};
use super::load::{self, ModelArg};
use super::terminal;
use crate::tokenizer::Encode;

/// Turn text into token ids, or ids into text
///
/// Ids come on one line, separated by spaces. Special tokens in the text, such as <|im_end|>, are read as what they
/// name unless --no-special is given.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rynd tokenize model.gguf -p 'Hello, world'
  rynd tokenize model.gguf --json < README.md
  rynd tokenize model.gguf --decode 9707 11 1879
  rynd tokenize model.gguf -p 'round trip' | rynd tokenize model.gguf --decode")]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    text: TextFlags,
    /// Read special tokens in the text as plain text
    #[arg(long)]
    no_special: bool,
    /// Add the tokens that the model wants around a text, such as BOS
    #[arg(long)]
    bos: bool,
    /// Print a JSON array of ids and what each stands for
    #[arg(long)]
    json: bool,
    /// Turn ids, from the arguments or standard input, into bytes
    #[arg(long, conflicts_with_all = ["no_special", "bos", "json"])]
    decode: bool,
    /// Ids to decode
    #[arg(value_name = "ID", requires = "decode")]
    ids: Vec<String>,
}

/// Runs the command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let tokenizer = load::tokenizer(&arguments.model.open()?)?;
    let mut out = terminal::stdout();
    if arguments.decode {
        let text = if arguments.ids.is_empty() { arguments.text.read()? } else { arguments.ids.join(" ") };
        let ids = input::ids(&text)?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= tokenizer.n_vocab()) {
            bail!("token id {id} is outside the vocabulary of {} tokens", tokenizer.n_vocab());
        }
        out.write_all(&tokenizer.decode_bytes(&ids, true))?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    let how = Encode { add_special: arguments.bos, parse_special: !arguments.no_special };
    let ids = tokenizer.encode(&arguments.text.read()?, how);
    if arguments.json {
        let tokens: Vec<serde_json::Value> = ids
            .iter()
            .map(|&id| {
                let bytes = tokenizer.token_bytes(id);
                // A token may hold part of a character: then its bytes say what its text can not.
                match std::str::from_utf8(bytes) {
                    Ok(text) => serde_json::json!({ "id": id, "text": text }),
                    Err(_) => serde_json::json!({ "id": id, "bytes": bytes }),
                }
            })
            .collect();
        serde_json::to_writer(&mut out, &tokens)?;
        writeln!(out)?;
    } else {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(out, "{}", ids.join(" "))?;
    }
    Ok(ExitCode::SUCCESS)
}
