//! Conversations to prompts, by the model's own template.
//!
//! A template decides everything: which tokens frame a turn, how tools are described, what is done with
//! earlier reasoning. So a prompt is what the template writes, and a model without one gets none by guessing: a built-in
//! one is taken only where its name is given. How a family writes calls is the one thing that a template does not say
//! backwards; that is the table of [`tools`]. Turns that a template refuses are put in place by marks read off it.

mod error;
mod json;
mod marks;
mod message;
mod prompter;
mod python;
mod shapes;
mod template;
pub mod tools;

pub use error::ChatError;
pub use message::{Content, FunctionCall, Message, ToolCall};
pub use prompter::{Generated, Prompter, Request};
pub use shapes::{Frame, Shapes};
pub use template::{BUILTIN_NAMES, Template};
