//! Conversations to prompts, by the model's own template.
//!
//! A template decides everything: which tokens frame a turn, how tools are described, what is done with
//! earlier reasoning. So nothing about a model family is written here, and a model without a template
//! gets none by guessing: a built-in one is taken only where its name is given.

mod error;
mod json;
mod marks;
mod message;
mod python;
mod template;
pub mod tools;

pub use error::ChatError;
pub use message::{Content, FunctionCall, Message, ToolCall};
pub use template::{BUILTIN_NAMES, Template};
