//! The disk tier from outside: what is read back is what was written, or nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod behind;
mod cap;
mod command;
mod crash;
mod damage;
mod random;
mod round_trip;
mod support;
mod texts;
