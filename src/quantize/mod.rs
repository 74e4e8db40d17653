//! GGUF in, GGUF out: another precision, chosen tensor by tensor.

pub mod file_type;
pub mod kind;
pub mod recipe;
