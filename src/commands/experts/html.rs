//! The page of `rynd experts show --html`: the figures as JSON, and a script that draws them as SVG.
//!
//! Everything is in one file: no library, no font, no address is fetched.

use super::show::{Comparison, Labelled, as_json};

const HEAD: &str = include_str!("page.html");

/// The whole page.
pub(super) fn page(labelled: &[Labelled], comparison: &Comparison) -> String {
    // '<' would let a label end the script.
    let data = as_json(labelled, comparison).to_string().replace('<', "\\u003c");
    HEAD.replace("/*DATA*/null", &data)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_fetches_nothing_and_has_a_place_for_the_data() {
        assert_eq!(super::HEAD.matches("/*DATA*/null").count(), 1);
        for outside in ["http:", "https:", "src=", "@import", "url(", "fetch("] {
            let found = super::HEAD.replace("http://www.w3.org/2000/svg", "").contains(outside);
            assert!(!found, "{outside}");
        }
    }
}
