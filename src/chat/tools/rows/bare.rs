//! No format of its own: an object whose name is a known tool's, plain or in a code fence.

use super::super::row::{DEFAULT, Row};

pub static ROW: Row = Row { name: "bare", bare: true, ..DEFAULT };
