//! The tools of a request, and how a parameter that was written as text becomes a value of its declared type.
//!
//! XML formats write `5` for the number and for the string: only the schema knows. What fits no declared type stays a
//! string, so that whoever runs the tool can say what is wrong with it.

use super::arguments::{mend, quote};
use serde_json::{Map, Value as Json};

/// The tools that a model may call.
#[derive(Debug, Clone, Default)]
pub struct Tools {
    parameters: Map<String, Json>, // by name: the JSON schema, or null
}

/// How the parameters of a format are typed where the schema is silent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Untyped {
    /// As text.
    Text,
    /// As JSON where it is some, else as text.
    Json,
}

impl Tools {
    /// Reads tools in OpenAI's shapes, and in Anthropic's.
    pub fn new(tools: &Json) -> Tools {
        let mut parameters = Map::new();
        for tool in tools.as_array().into_iter().flatten() {
            let tool = tool.get("function").unwrap_or(tool);
            if let Some(name) = tool.get("name").and_then(Json::as_str) {
                let schema = tool.get("parameters").or_else(|| tool.get("input_schema"));
                parameters.insert(name.to_owned(), schema.cloned().unwrap_or_default());
            }
        }
        Tools { parameters }
    }

    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    pub fn knows(&self, name: &str) -> bool {
        self.parameters.contains_key(name)
    }

    /// The names, in the order in which they were given.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parameters.keys().map(String::as_str)
    }

    /// The JSON schema of a tool's arguments.
    pub fn schema(&self, tool: &str) -> Option<&Json> {
        self.parameters.get(tool).filter(|schema| schema.is_object())
    }

    /// The tool that is meant: some models put `functions.` in front of its name.
    pub(super) fn resolve(&self, name: &str) -> String {
        let name = name.trim();
        match name.strip_prefix("functions.") {
            Some(short) if !self.knows(name) => short.to_owned(),
            _ => name.to_owned(),
        }
    }

    fn types(&self, tool: &str, parameter: &str) -> Vec<String> {
        let mut found = vec![];
        if let Some(root) = self.schema(tool)
            && let Some(schema) = root.get("properties").and_then(|properties| properties.get(parameter))
        {
            types(schema, root, 0, &mut found);
        }
        found
    }

    /// Whether the parameter is text and nothing else, so that it can be passed on as it comes.
    pub(super) fn is_text(&self, tool: &str, parameter: &str, untyped: Untyped) -> bool {
        let types = self.types(tool, parameter);
        if types.is_empty() { untyped == Untyped::Text } else { types.iter().all(|kind| kind == "string") }
    }

    /// The value of a parameter as JSON.
    pub(super) fn coerce(&self, tool: &str, parameter: &str, text: &str, untyped: Untyped) -> String {
        let types = self.types(tool, parameter);
        let has = |kind: &str| types.iter().any(|own| own == kind);
        let trimmed = text.trim();
        let value = serde_json::from_str::<Json>(trimmed).ok();
        let fits = |value: &Json| match value {
            Json::Null => has("null"),
            Json::Bool(_) => has("boolean"),
            Json::Number(_) => has("number") || (has("integer") && !trimmed.contains(['.', 'e', 'E'])),
            Json::String(_) => has("string") && !types.iter().all(|own| own == "string" || own == "null"),
            Json::Array(_) => has("array"),
            Json::Object(_) => has("object"),
        };
        match (types.is_empty(), &value) {
            (true, Some(_)) if untyped == Untyped::Json => return trimmed.to_owned(),
            (false, Some(value)) if fits(value) => return trimmed.to_owned(),
            // 3.0 is an integer.
            (false, Some(Json::Number(number))) if has("integer") => {
                if let Some(whole) = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15) {
                    return format!("{}", whole as i64);
                }
            }
            (false, Some(Json::String(inner))) if !has("string") => {
                // "5" in quotes where a number is declared.
                let again = serde_json::from_str::<Json>(inner).ok();
                if again.is_some_and(|again| fits(&again)) {
                    return inner.trim().to_owned();
                }
            }
            _ => {}
        }
        let spelled = match trimmed.to_ascii_lowercase().as_str() {
            "true" if has("boolean") => Some("true"),
            "false" if has("boolean") => Some("false"),
            "null" | "none" if has("null") => Some("null"),
            _ => None,
        };
        if let Some(literal) = spelled {
            return literal.to_owned();
        }
        if (has("object") || has("array")) && !has("string") {
            // As a value of an object, so that lists are mended as well.
            if let Some(mended) = mend(&format!("{{\"v\":{trimmed}}}")) {
                return mended[5..mended.len() - 1].to_owned();
            }
        }
        let mut out = String::new();
        quote(text, &mut out);
        out
    }
}

/// The JSON types that a schema allows.
fn types(schema: &Json, root: &Json, depth: usize, found: &mut Vec<String>) {
    if depth > 8 {
        return;
    }
    match schema.get("type") {
        Some(Json::String(kind)) => found.push(kind.to_ascii_lowercase()),
        Some(Json::Array(kinds)) => found.extend(kinds.iter().filter_map(Json::as_str).map(str::to_ascii_lowercase)),
        _ => {}
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        let options = schema.get(key).and_then(Json::as_array).into_iter().flatten();
        options.for_each(|option| types(option, root, depth + 1, found));
    }
    if let Some(path) = schema.get("$ref").and_then(Json::as_str).and_then(|path| path.strip_prefix('#'))
        && let Some(target) = root.pointer(path)
    {
        types(target, root, depth + 1, found);
    }
    if found.is_empty() {
        let values = schema.get("enum").and_then(Json::as_array).into_iter().flatten().chain(schema.get("const"));
        found.extend(values.map(|value| match value {
            Json::Null => "null".to_owned(),
            Json::Bool(_) => "boolean".to_owned(),
            Json::Number(_) => "number".to_owned(),
            Json::String(_) => "string".to_owned(),
            Json::Array(_) => "array".to_owned(),
            Json::Object(_) => "object".to_owned(),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parameters_get_their_declared_types() {
        let schema = json!({"properties": {
            "s": {"type": "string"}, "i": {"type": "integer"}, "n": {"type": "number"}, "b": {"type": "boolean"},
            "a": {"type": "array"}, "o": {"type": "object"}, "sn": {"type": ["string", "null"]},
            "si": {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "e": {"enum": ["1", "2"]}, "r": {"$ref": "#/$defs/x"}},
            "$defs": {"x": {"type": "integer"}}});
        let tools = Tools::new(&json!([{"type": "function", "function": {"name": "f", "parameters": schema}}]));
        for (parameter, text, wanted) in [
            ("s", "5", "\"5\""),
            ("s", " a\n\"b\"", "\" a\\n\\\"b\\\"\""),
            ("s", "null", "\"null\""),
            ("i", " 5\n", "5"),
            ("i", "5.0", "5"),
            ("i", "\"5\"", "5"),
            ("i", "five", "\"five\""),
            ("i", "123456789012345678901", "123456789012345678901"),
            ("n", "1e3", "1e3"),
            ("b", "True", "true"),
            ("b", "false", "false"),
            ("a", "['x', 1,]", "[\"x\", 1]"),
            ("a", "[1,2]", "[1,2]"),
            ("o", "{'a': None}", "{\"a\": null}"),
            ("o", "nothing", "\"nothing\""),
            ("sn", "null", "null"),
            ("sn", "nullable", "\"nullable\""),
            ("sn", "\"x\"", "\"\\\"x\\\"\""),
            ("si", "5", "5"),
            ("si", "x5", "\"x5\""),
            ("e", "1", "\"1\""),
            ("r", "7", "7"),
            ("unknown", "7", "\"7\""),
        ] {
            assert_eq!(tools.coerce("f", parameter, text, Untyped::Text), wanted, "{parameter} {text}");
        }
        assert_eq!(tools.coerce("f", "unknown", "7", Untyped::Json), "7");
        assert!(tools.is_text("f", "s", Untyped::Json) && !tools.is_text("f", "sn", Untyped::Text));
    }
}
