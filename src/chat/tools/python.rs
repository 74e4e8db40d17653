//! Llama's built-in tools: `name.call(key="value")` as an object.

use super::arguments::{mend, quote};
use super::header::{Begin, Given, Header, LONGEST_NAME, Scan, is_name, scan};
use super::schema::{Tools, Untyped};

/// A call of a known tool, or of any by `.call`.
pub(super) fn call(text: &str, tools: &Tools) -> Header {
    let Some(open) = text.find('(') else {
        let odd = text.contains(|c: char| !(c.is_alphanumeric() || "._".contains(c)));
        return if odd || text.len() > LONGEST_NAME { Header::No } else { Header::Need };
    };
    let name = text[..open].strip_suffix(".call").unwrap_or(&text[..open]);
    let called = name.len() < open || tools.knows(&tools.resolve(name));
    if !is_name(name) || !called {
        return Header::No;
    }
    match scan(&text[open..]) {
        Scan::Need => Header::Need,
        Scan::Bad => Header::No,
        Scan::End(n) => {
            let name = tools.resolve(name);
            let inside = open + 1..open + n - 1;
            Header::Yes(Begin { name, at: open + n, arguments: Given::Keywords(inside) })
        }
    }
}

/// `a="x", b=2` as an object.
pub(super) fn keywords(text: &str, tool: &str, tools: &Tools) -> String {
    let mut json = String::from("{");
    let mut rest = text.trim();
    while let Some((key, value)) = rest.split_once('=') {
        let value = value.trim_start();
        let n = match scan(value) {
            Scan::End(n) => n,
            Scan::Need | Scan::Bad => value.len(),
        };
        if json.len() > 1 {
            json.push_str(", ");
        }
        quote(key.trim(), &mut json);
        json.push_str(": ");
        let written = value[..n].trim();
        match mend(&format!("{{\"v\":{written}}}")) {
            Some(mended) => json.push_str(&mended[5..mended.len() - 1]),
            None => json.push_str(&tools.coerce(tool, key.trim(), written, Untyped::Text)),
        }
        rest = value[n..].trim_start().trim_start_matches(',').trim_start();
    }
    json.push('}');
    json
}
