//! JSON whose keys are sorted, and whose lists of numbers stand in one line: the same bytes from the
//! same numbers.

use std::fmt::Write;

use serde_json::Value;

/// The text of a file.
pub fn text(file: &Value) -> String {
    let mut text = String::new();
    write(&mut text, file, 0);
    text.push('\n');
    text
}

/// Whether it stands in one line: numbers, words and lists of them.
fn is_short(value: &Value) -> bool {
    match value {
        Value::Object(object) => object.is_empty(),
        Value::Array(values) => values.iter().all(is_short),
        _ => true,
    }
}

fn write(text: &mut String, value: &Value, depth: usize) {
    let indent = |text: &mut String, depth: usize| {
        text.push('\n');
        text.extend(std::iter::repeat_n(' ', depth));
    };
    match value {
        Value::Array(values) if is_short(value) => {
            text.push('[');
            for (i, value) in values.iter().enumerate() {
                text.push_str(if i == 0 { "" } else { "," });
                write(text, value, depth);
            }
            text.push(']');
        }
        Value::Array(values) => {
            text.push('[');
            for (i, value) in values.iter().enumerate() {
                text.push_str(if i == 0 { "" } else { "," });
                indent(text, depth + 1);
                write(text, value, depth + 1);
            }
            indent(text, depth);
            text.push(']');
        }
        Value::Object(object) if !object.is_empty() => {
            let mut entries: Vec<_> = object.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            text.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                text.push_str(if i == 0 { "" } else { "," });
                indent(text, depth + 1);
                write!(text, "{}: ", Value::from(key.as_str())).unwrap();
                write(text, value, depth + 1);
            }
            indent(text, depth);
            text.push('}');
        }
        plain => write!(text, "{plain}").unwrap(),
    }
}
