//! A chat template's source as minijinja takes it.
//!
//! Jinja knows three things that minijinja does not: lines that end in CR LF, `{% generation %}`, and
//! Python's text of a number, which `~` and the filters of texts begin with.

/// A name that no template has: the filter around what the assistant says.
pub(super) const GENERATION: &str = "__generation__";

/// Filters of texts: in Jinja, each makes a text of what it gets.
const OF_TEXTS: [&str; 8] = [
    "capitalize",
    "e",
    "escape",
    "lower",
    "replace",
    "title",
    "trim",
    "upper",
];

/// Rewrites a source: lines end in LF, generation blocks are a filter that marks what is rendered (with
/// a scope around it, since what is set inside stays there), and operands of `~` are texts first.
pub(super) fn prepared(source: &str) -> String {
    // As Jinja does it, in texts of expressions, too.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(start) = next_tag(rest) {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(length) = length_of(tag) else {
            // No end: minijinja says where it began.
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(length);
        rest = after;
        match tag.as_bytes()[1] {
            b'#' => out.push_str(tag),
            _ if name_of_block(tag) == Some("raw") => {
                let end = end_of_raw(after).unwrap_or(after.len());
                let (raw, after) = after.split_at(end);
                out.push_str(tag);
                out.push_str(raw);
                rest = after;
            }
            _ => out.push_str(&rewritten(tag)),
        }
    }
    out.push_str(rest);
    out
}

/// Where the next tag or comment begins.
fn next_tag(text: &str) -> Option<usize> {
    let mut braces = text.match_indices('{').map(|(at, _)| at);
    braces.find(|at| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))
}

/// Bytes of the tag or comment at the start of a text.
fn length_of(tag: &str) -> Option<usize> {
    let close = match tag.as_bytes()[1] {
        b'#' => return tag.find("#}").map(|end| end + 2),
        b'%' => "%}",
        _ => "}}",
    };
    let (mut at, mut depth) = (2, 0_usize);
    while let Some(token) = next_token(tag, at) {
        // A bracket that is open goes before: `{{ {'a': {}} }}`.
        if depth == 0 && tag[token.start..].starts_with(close) {
            return Some(token.start + 2);
        }
        match &tag[token.start..token.end] {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        at = token.end;
    }
    None
}

/// The first word of a block, `{% word … %}`.
fn name_of_block(tag: &str) -> Option<&str> {
    let inside = tag.strip_prefix("{%")?;
    let inside = inside.trim_start_matches(['-', '+']).trim_start();
    let end = inside.find(|char: char| !is_of_name(char));
    Some(&inside[..end.unwrap_or(inside.len())])
}

/// Where `{% endraw %}` begins.
fn end_of_raw(text: &str) -> Option<usize> {
    let mut blocks = text.match_indices("{%").map(|(at, _)| at);
    blocks.find(|&at| name_of_block(&text[at..]) == Some("endraw"))
}

/// A tag with its generation block, filters and operands in minijinja's words.
fn rewritten(tag: &str) -> String {
    let blocks = match name_of_block(tag).filter(|_| tag.starts_with("{%")) {
        Some("generation") => Some(("with".to_owned(), format!("filter {GENERATION}"))),
        Some("endgeneration") => Some(("endfilter".to_owned(), "endwith".to_owned())),
        _ => None,
    };
    let inside = &tag[2..tag.len() - 2];
    if let Some((first, second)) = blocks {
        let sign = |end: Option<char>| end.filter(|end| "-+".contains(*end));
        let left = sign(inside.chars().next()).map_or(String::new(), String::from);
        let right = sign(inside.chars().next_back()).map_or(String::new(), String::from);
        return format!("{{%{left} {first} %}}{{% {second} {right}%}}");
    }
    let tokens = tokens(tag);
    let mut added: Vec<(usize, &str)> = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let follows = tokens.get(i + 1).map(|next| (next.start, next.text(tag)));
        match (token.text(tag), follows) {
            ("|", Some((at, name))) if OF_TEXTS.contains(&name) => added.push((at, "string|")),
            ("~", _) => {
                let left = start_of_operand(tag, &tokens, i)..i;
                let right = i + 1..end_of_operand(tag, &tokens, i + 1);
                // The right one is the left one of a `~` that follows.
                let last = tokens
                    .get(right.end)
                    .is_none_or(|next| next.text(tag) != "~");
                for operand in [Some(left), last.then_some(right)].into_iter().flatten() {
                    let is_text = operand.len() == 1 && tokens[operand.start].is_text;
                    if !operand.is_empty() && !is_text {
                        added.push((tokens[operand.start].start, "("));
                        added.push((tokens[operand.end - 1].end, ")|string"));
                    }
                }
            }
            _ => {}
        }
    }
    added.sort_by_key(|(at, _)| *at);
    let mut out = String::with_capacity(tag.len());
    let mut done = 0;
    for (at, text) in added {
        out.push_str(&tag[done..at]);
        out.push_str(text);
        done = at;
    }
    out.push_str(&tag[done..]);
    out
}

/// A word, a number, a text in quotes or an operator.
struct Token {
    start: usize,
    end: usize,
    is_text: bool,
}

impl Token {
    fn text<'a>(&self, tag: &'a str) -> &'a str {
        &tag[self.start..self.end]
    }
}

/// The tokens between the delimiters of a tag.
fn tokens(tag: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut at = 2;
    // The signs of `{{- … -}}` are no operators.
    if tag[2..].starts_with(['-', '+']) {
        at += 1;
    }
    while let Some(token) = next_token(tag, at) {
        let rest = &tag[token.start..tag.len() - 2];
        if rest.is_empty() || ["-", "+"].contains(&rest) {
            break;
        }
        at = token.end;
        tokens.push(token);
    }
    tokens
}

fn is_of_name(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

/// The token at or behind a place, if its text ends.
fn next_token(tag: &str, at: usize) -> Option<Token> {
    let rest = tag[at..].trim_start();
    let start = tag.len() - rest.len();
    let first = rest.chars().next()?;
    let quoted = ['"', '\''].contains(&first);
    let length = if quoted {
        let mut escaped = false;
        let end = rest.char_indices().skip(1).find(|(_, char)| {
            let ends = *char == first && !escaped;
            escaped = *char == '\\' && !escaped;
            ends
        });
        end?.0 + 1
    } else if first.is_ascii_digit() {
        length_of_number(rest)
    } else if is_of_name(first) {
        rest.find(|char| !is_of_name(char)).unwrap_or(rest.len())
    } else {
        let two = ["**", "//", "==", "!=", "<=", ">="];
        if two.iter().any(|two| rest.starts_with(two)) {
            2
        } else {
            first.len_utf8()
        }
    };
    Some(Token {
        start,
        end: start + length,
        is_text: quoted,
    })
}

fn length_of_number(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let mut end = 1;
    while let Some(&byte) = bytes.get(end) {
        let next_is_digit = bytes.get(end + 1).is_some_and(u8::is_ascii_digit);
        let after_e = matches!(bytes[end - 1], b'e' | b'E');
        let more = byte.is_ascii_alphanumeric()
            || byte == b'_'
            || (byte == b'.' && next_is_digit)
            || (after_e && matches!(byte, b'-' | b'+') && next_is_digit);
        if !more {
            break;
        }
        end += 1;
    }
    end
}

/// What an operand of `~` ends at: operators that bind less, and what surrounds an expression.
fn ends_operand(tag: &str, tokens: &[Token], i: usize) -> bool {
    let before = i.checked_sub(1).map(|i| tokens[i].text(tag));
    match tokens[i].text(tag) {
        "+" | "-" => before.is_some() && !is_open(tag, tokens, i),
        "~" | "," | ":" | "=" | "==" | "!=" | "<" | ">" | "<=" | ">=" | "(" | "[" | "{" => true,
        // `x is not none` is an operand, `x.in` a field.
        "not" => before != Some("is") && before != Some("."),
        "and" | "or" | "if" | "else" | "elif" | "in" | "set" | "for" | "recursive" | "do"
        | "call" | "with" | "include" => before != Some("."),
        _ => false,
    }
}

/// Tells whether an expression begins at a token, so that `-` there is a sign.
fn is_open(tag: &str, tokens: &[Token], i: usize) -> bool {
    let Some(before) = i.checked_sub(1) else {
        return true;
    };
    let text = tokens[before].text(tag);
    let operators = ["*", "/", "//", "%", "**", "+", "-"];
    operators.contains(&text) || ends_operand(tag, tokens, before)
}

fn start_of_operand(tag: &str, tokens: &[Token], end: usize) -> usize {
    let (mut start, mut depth) = (end, 0_usize);
    while let Some(i) = start.checked_sub(1) {
        match tokens[i].text(tag) {
            ")" | "]" | "}" => depth += 1,
            "(" | "[" | "{" if depth > 0 => depth -= 1,
            _ if depth == 0 && ends_operand(tag, tokens, i) => break,
            _ => {}
        }
        start = i;
    }
    start
}

fn end_of_operand(tag: &str, tokens: &[Token], start: usize) -> usize {
    let (mut end, mut depth) = (start, 0_usize);
    while let Some(token) = tokens.get(end) {
        match token.text(tag) {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" if depth == 0 => break,
            ")" | "]" | "}" => depth -= 1,
            _ if depth == 0 && ends_operand(tag, tokens, end) => break,
            _ => {}
        }
        end += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::prepared;

    #[test]
    fn operands_of_tildes_are_texts_first() {
        for (source, expected) in [
            ("{{ a ~ b }}", "{{ (a)|string ~ (b)|string }}"),
            ("{{- 'a' ~ b.c[0] -}}", "{{- 'a' ~ (b.c[0])|string -}}"),
            (
                "{{ a ~ '}}' ~ c|f(1, 2) }}",
                "{{ (a)|string ~ '}}' ~ (c|f(1, 2))|string }}",
            ),
            (
                "{{ x + a * -2 ~ b - 1 }}",
                "{{ x + (a * -2)|string ~ (b)|string - 1 }}",
            ),
            ("{{ -a ~ 1e-5 }}", "{{ (-a)|string ~ (1e-5)|string }}"),
            (
                "{{ f(a ~ b, c) ~ d }}",
                "{{ (f((a)|string ~ (b)|string, c))|string ~ (d)|string }}",
            ),
            (
                "{% set x = a ~ [1] if b else {'c': d ~ e} %}",
                "{% set x = (a)|string ~ ([1])|string if b else {'c': (d)|string ~ (e)|string} %}",
            ),
            (
                "{% if a is not none ~ b == c.in ~ d and e %}",
                "{% if (a is not none)|string ~ (b)|string == (c.in)|string ~ (d)|string and e %}",
            ),
            (
                "{{ {'a': {'b': x | trim}} }}~",
                "{{ {'a': {'b': x | string|trim}} }}~",
            ),
            // Not code.
            (
                "{# a ~ b #}{% raw %}{{ a ~ b }}{% endraw %}~",
                "{# a ~ b #}{% raw %}{{ a ~ b }}{% endraw %}~",
            ),
            ("a\r\nb\rc {{ 'd\r\ne' }}\r\n", "a\nb\nc {{ 'd\ne' }}\n"),
            ("{{ a ~ b", "{{ a ~ b"),
            ("{{ a ~ 'b", "{{ a ~ 'b"),
        ] {
            assert_eq!(prepared(source), expected, "{source}");
        }
    }
}
