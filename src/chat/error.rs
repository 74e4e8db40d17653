//! What can go wrong between a conversation and a prompt.

use crate::gguf::GgufError;
use thiserror::Error;

#[derive(Debug, Error)]
pub enum ChatError {
    #[error("the chat template of {template} is broken in line {line}: {why}\n  {source_line}\nUse another template (built in: {})", super::BUILTIN_NAMES.join(", "))]
    Syntax { template: String, line: usize, why: String, source_line: String },
    #[error("the chat template of {template} fails in line {line}: {why}\n  {source_line}\nUse another template (built in: {})", super::BUILTIN_NAMES.join(", "))]
    Failed { template: String, line: usize, why: String, source_line: String },
    #[error("the chat template of {template} refuses this conversation: {why}")]
    Refused { template: String, why: String },
    #[error(
        "the chat template of {template} refuses a conversation without a system message: {why}; give one with --system TEXT"
    )]
    NeedsSystem { template: String, why: String },
    #[error("the chat template of {template} is {what}, more than the {most} that rynd compiles\nUse another template (built in: {})", super::BUILTIN_NAMES.join(", "))]
    TooLarge { template: String, what: String, most: String },
    #[error("there is no memory for the stack of {bytes} bytes that the chat template of {template} may need: {why}")]
    NoStack { template: String, bytes: usize, why: String },
    #[error("the chat template of {template} was stopped in line {line}: it does not come to an end, or makes a prompt of absurd size\n  {source_line}\nUse another template (built in: {})", super::BUILTIN_NAMES.join(", "))]
    Endless { template: String, line: usize, source_line: String },
    #[error("{model} has no chat template (tokenizer.chat_template): name one (built in: {}), or send a raw prompt", super::BUILTIN_NAMES.join(", "))]
    NoTemplate { model: String },
    #[error(
        "the conversation uses every private-use character, so its text can not be told from the template's tokens; remove some, or let special tokens be read (--parse-special)"
    )]
    NoMark,
    #[error(
        "message {message} has a part of type '{kind}', and this model reads text only; send its text, or leave it out"
    )]
    NotText { message: usize, kind: String },
    #[error(transparent)]
    File(#[from] GgufError),
    #[error("there is no built-in chat template '{name}': use one of {}", super::BUILTIN_NAMES.join(", "))]
    UnknownBuiltin { name: String },
}
