//! Where Jinja in Python and minijinja differ, and templates of real models notice.
//!
//! Methods of strings that `minijinja-contrib` lacks, and the two tests whose meaning is Python's.

use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

/// Longest run of digits in a `str.format` string: a width is paid for only after it was written.
const MAX_WIDTH_DIGITS: usize = 4;

/// Python's methods on strings, lists and dicts.
pub fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, method, args);
    };
    match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "rsplit" => {
            let (separator, most): (&str, Option<usize>) = from_args(args)?;
            let mut parts: Vec<&str> = match most {
                Some(most) => text.rsplitn(most.saturating_add(1), separator).collect(),
                None => text.rsplit(separator).collect(),
            };
            parts.reverse();
            Ok(parts.into_iter().collect())
        }
        "format" if text.split(|char: char| !char.is_ascii_digit()).any(|run| run.len() > MAX_WIDTH_DIGITS) => {
            Err(Error::new(ErrorKind::InvalidOperation, "format: a width of more than 4 digits is not allowed"))
        }
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Everything that a loop takes; none is not.
pub fn is_iterable(value: &Value) -> bool {
    let kind = value.kind();
    matches!(kind, ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Undefined)
}

/// Everything that has a length and items.
pub fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
}
