//! One file a format. The order is the order in which a template is asked for its signs, the most telling first.

mod bare;
mod deepseek;
mod deepseek_dsml;
mod gemma;
mod glm;
mod harmony;
mod hermes;
mod kimi;
mod llama;
mod minimax;
mod mistral;
mod qwen_xml;

use super::row::Row;

/// All formats; the last one takes every template.
pub static ROWS: &[&Row] = &[
    &harmony::ROW,
    &kimi::ROW,
    &deepseek_dsml::ROW,
    &deepseek::ROW,
    &minimax::ROW,
    &glm::ROW,
    &qwen_xml::ROW,
    &gemma::ROW,
    &mistral::ROW,
    &hermes::ROW,
    &llama::ROW,
    &bare::ROW,
];

/// The format that is no list of marks.
pub const HARMONY: &str = "harmony";

/// The format of a template.
pub fn of_template(source: &str) -> &'static Row {
    let writes = |row: &&&Row| row.signs.iter().any(|signs| signs.iter().all(|sign| source.contains(sign)));
    ROWS.iter().find(writes).copied().unwrap_or(&bare::ROW)
}

/// The format of a name.
pub fn named(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name).copied()
}
