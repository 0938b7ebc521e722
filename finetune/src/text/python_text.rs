//! Values as Python prints them: `str` and `repr`.

use std::fmt::Write;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::python_json::number;

/// Python's `str`, which Jinja prints: a text as it is, and anything else as [`repr`] has it.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    match (value.kind(), value.as_str()) {
        (_, Some(text)) => Ok(text.to_owned()),
        (ValueKind::Undefined, _) => Ok(String::new()),
        _ => {
            let mut out = String::new();
            repr(value, &mut out)?;
            Ok(out)
        }
    }
}

/// The filter `join`: its items as texts, with another text between them.
pub(super) fn join(
    items: &Value,
    between: Option<&Value>,
    attribute: Option<&str>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let named = (kwargs.get("d")?, kwargs.get("attribute")?);
    kwargs.assert_all_used()?;
    let between = between.or(named.0).map_or(Ok(String::new()), text)?;
    let attribute = attribute.or(named.1);
    // A text is its characters.
    let items: Vec<Value> = match items.as_str() {
        Some(text) => text.chars().map(Value::from).collect(),
        None => items.try_iter()?.collect(),
    };
    let mut texts = Vec::new();
    for mut item in items {
        for key in attribute.into_iter().flat_map(|path| path.split('.')) {
            item = item.get_attr(key)?;
        }
        texts.push(text(&item)?);
    }
    Ok(texts.join(&between))
}

fn repr(value: &Value, out: &mut String) -> Result<(), Error> {
    let items = |out: &mut String, [open, close]: [char; 2]| {
        out.push(open);
        for (i, item) in value.try_iter()?.enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            repr(&item, out)?;
            if value.kind() == ValueKind::Map {
                out.push_str(": ");
                repr(&value.get_item(&item)?, out)?;
            }
        }
        if value.is_tuple() && value.len() == Some(1) {
            out.push(',');
        }
        out.push(close);
        Ok(())
    };
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number => out.push_str(&match f64::try_from(value.clone()) {
            Ok(x) if x.is_nan() => "nan".to_owned(),
            Ok(x) if x.is_infinite() && !value.is_integer() => {
                if x > 0.0 { "inf" } else { "-inf" }.to_owned()
            }
            _ => number(value)?,
        }),
        ValueKind::String => quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable if value.len().is_some() => {
            return items(
                out,
                if value.is_tuple() {
                    ['(', ')']
                } else {
                    ['[', ']']
                },
            );
        }
        ValueKind::Map => return items(out, ['{', '}']),
        ValueKind::Invalid => {
            return Err(Error::new(ErrorKind::InvalidOperation, value.to_string()));
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A text in the quotes that need fewer escapes; what cannot be printed is escaped.
fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for char in text.chars() {
        let code = u32::from(char);
        let written = match char {
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\\' => write!(out, "\\\\"),
            char if char == quote => write!(out, "\\{char}"),
            '\'' | '"' => write!(out, "{char}"),
            _ if is_printable(char) => write!(out, "{char}"),
            _ if code < 0x100 => write!(out, "\\x{code:02x}"),
            _ if code < 0x1_0000 => write!(out, "\\u{code:04x}"),
            _ => write!(out, "\\U{code:08x}"),
        };
        written.expect("a String has room");
    }
    out.push(quote);
}

/// Rust and Python call the same characters printable; Rust escapes a combining one at the start of a
/// text besides.
fn is_printable(char: char) -> bool {
    let after_another: String = ['a', char].iter().collect();
    after_another.escape_debug().count() == 2
}
