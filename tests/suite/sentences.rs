//! First sentences of the documentation stand alone: rustdoc lists them without the code beside them.

use std::fs;
use std::path::Path;

use crate::floors::sources;

/// A sentence that begins with one of these describes a thing without naming it.
const OPENINGS: [&str; 6] = ["How", "Of", "What", "Where", "Which", "Whose"];

fn stands_alone(sentence: &str) -> bool {
    let words: Vec<&str> = sentence.split_whitespace().collect();
    words.len() > 2
        && !OPENINGS.contains(&words[0])
        && words.iter().any(|word| word.contains(char::is_alphabetic))
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The text of a line of documentation: `/// text`, `#[doc = "text"]`, and the strings of a `concat!`.
fn text(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(text) = line.strip_prefix("///").or(line.strip_prefix("//!")) {
        return Some(text.trim().to_owned());
    }
    let strings = line.strip_prefix("#[doc = ")?.split('"').skip(1).step_by(2);
    Some(strings.collect::<Vec<_>>().join("…"))
}

/// Every public item, field, variant and method of a formatted source file, and the file itself: the
/// number of the first line of its documentation, and the first sentence there.
fn first_sentences(source: &str) -> Vec<(usize, String)> {
    let lines: Vec<&str> = source.lines().collect();
    let mut found = Vec::new();
    // Indentation of the enum or trait around a line, whose members are as public as itself.
    let mut members: Option<usize> = None;
    let mut at = 0;
    while at < lines.len() {
        let (start, mut paragraph, mut is_open) = (at, Vec::new(), true);
        let mut in_attribute = false;
        while let Some(line) = lines.get(at).map(|line| line.trim_start()) {
            let attribute = in_attribute || line.starts_with("#[");
            if let Some(text) = text(line).filter(|_| !in_attribute) {
                is_open &= !text.is_empty();
                paragraph.extend(is_open.then_some(text));
            } else if line.starts_with("$(#[") {
                // Documentation that a macro is given comes first.
                is_open = false;
            } else if !attribute {
                break;
            }
            in_attribute = attribute && !line.ends_with(']');
            at += 1;
        }
        let Some(line) = lines.get(at) else { break };
        let item = line.trim_start();
        if members.is_some_and(|depth| indent(line) <= depth && item.starts_with('}')) {
            members = None;
        }
        let is_file = lines[start].starts_with("//!");
        let is_public = item.starts_with("pub ") || item.contains(" / with_") || members.is_some();
        if !paragraph.is_empty() && (is_file || is_public) {
            let paragraph = paragraph.join(" ");
            let sentence = paragraph.split_inclusive(". ").next().unwrap_or_default();
            found.push((start + 1, sentence.trim().to_owned()));
        }
        let has_members = item.starts_with("pub enum ") || item.starts_with("pub trait ");
        if has_members && !item.ends_with('}') {
            members = Some(indent(line));
        }
        at += 1;
    }
    found
}

#[test]
fn first_sentences_stand_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut checked, mut bad) = (0, Vec::new());
    let folders = ["src", "finetune/src"].map(|folder| sources(&root.join(folder)));
    for file in folders.concat() {
        let name = file.strip_prefix(root).unwrap().display();
        for (line, sentence) in first_sentences(&fs::read_to_string(&file).unwrap()) {
            checked += 1;
            if !stands_alone(&sentence) {
                bad.push(format!("{name}:{line}: {sentence}"));
            }
        }
    }
    let bad = bad.join("\n");
    assert!(bad.is_empty(), "these do not stand alone:\n{bad}");
    assert!(
        checked > 1000,
        "only {checked} sentences found: is the reader broken?"
    );
}

#[test]
fn chapters_begin_with_such_a_sentence() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide");
    let files = fs::read_dir(guide)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    for file in files.filter(|file| file.extension().is_some_and(|end| end == "md")) {
        let text = fs::read_to_string(&file).unwrap();
        let sentence = text.split(". ").next().unwrap();
        assert!(stands_alone(sentence), "{}: {sentence}", file.display());
    }
}

#[test]
fn the_reader_sees_what_is_public() {
    let source = r#"//! What a file holds.

/// Number of rows
/// in the batch. Not shown.
///
/// Of another paragraph.
#[derive(Debug)]
pub struct Rows(pub usize);

/// Where nobody looks.
fn private() {}

#[doc = concat!("Configuration of [`", stringify!($loss), "`].")]
#[allow(
    dead_code,
    reason = "an attribute of several lines"
)]
/// Which is no first line.
pub enum Mode {
    /// Which.
    First,
    Second {
        /// Of how many.
        count: usize,
    },
}

$(#[$given])*
/// Which follows what a macro is given.
pub struct Given;

impl Rows {
    /// `[batch]`.
    pub fn losses(&self) {}
    /// How a private method works.
    fn inner(&self) {}
}

objective! {
    pub struct Loss from Config {
        /// β.
        beta / with_beta: f64 = 0.1, positive;
    }
}
"#;
    let found = first_sentences(source);
    let sentences: Vec<(usize, &str)> = found.iter().map(|(n, s)| (*n, s.as_str())).collect();
    assert_eq!(
        sentences,
        [
            (1, "What a file holds."),
            (3, "Number of rows in the batch."),
            (13, "Configuration of [`…`]."),
            (20, "Which."),
            (23, "Of how many."),
            (33, "`[batch]`."),
            (41, "β."),
        ]
    );
    let alone: Vec<bool> = found.iter().map(|(_, s)| stands_alone(s)).collect();
    assert_eq!(alone, [false, true, true, false, false, false, false]);
}
