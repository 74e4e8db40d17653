//! The last completions, for a user who types what they propose.

use super::Request;

/// Completions of one cursor.
#[derive(Debug, Default)]
pub struct Recent {
    request: Option<Request>,
    texts: Vec<String>,
}

impl Recent {
    /// Keeps the completions of a request.
    pub fn keep(&mut self, request: Request, texts: Vec<String>) {
        *self = Recent { request: Some(request), texts };
    }

    /// What is left of them when the user typed on as proposed, or nothing has changed. Computing it would give the same,
    /// up to where the tokens fall.
    pub fn left(&self, request: &Request) -> Vec<String> {
        let Some(old) = &self.request else { return vec![] };
        let Some(typed) = request.prefix.strip_prefix(&old.prefix) else { return vec![] };
        if old.suffix != request.suffix || old.path != request.path {
            return vec![];
        }
        let rest = |text: &String| text.strip_prefix(typed).filter(|rest| !rest.is_empty()).map(str::to_owned);
        self.texts.iter().filter_map(rest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_on_as_proposed_keeps_the_rest() {
        let request = |prefix: &str, suffix: &str| Request {
            prefix: prefix.to_owned(),
            suffix: suffix.to_owned(),
            ..Request::default()
        };
        let mut recent = Recent::default();
        assert!(recent.left(&request("", "")).is_empty());
        recent.keep(request("let x", ")"), vec![" = f(1);".into(), ": u32".into()]);
        assert_eq!(recent.left(&request("let x", ")")), [" = f(1);", ": u32"]);
        assert_eq!(recent.left(&request("let x =", ")")), [" f(1);"]);
        assert!(recent.left(&request("let x = f(1);", ")")).is_empty());
        assert!(recent.left(&request("let y", ")")).is_empty());
        assert!(recent.left(&request("let x =", "))")).is_empty());
        assert!(recent.left(&request("let", ")")).is_empty());
    }
}
