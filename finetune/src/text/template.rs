//! A model's own chat template: what transformers' `apply_chat_template` renders, and which of it the
//! assistant says.
//!
//! What transformers adds to Jinja is here: `raise_exception`, `strftime_now`, its `tojson`,
//! Python's string methods, `break` and `continue`, and blocks of `{% generation %}`.
//! `tests/chat_template.rs` compares texts and masks with transformers' own. What is known to
//! differ: inside a list that is printed, or joined by `~`, a number like 1e-7 is written as Rust
//! does, not as Python's 1e-07; `%` between texts is an error.

use std::error::Error as StdError;
use std::ops::Range;
use std::path::Path;
use std::{fmt, fs};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde_json::Value as Json;
use time::OffsetDateTime;

use super::python_json::{number, to_json};

/// A compiled template and the special tokens that it may write.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: Vec<(String, String)>,
    /// Around what the assistant says, while it is rendered.
    marks: [char; 2],
    /// The template for conversations with tools, where the model has one apart.
    with_tools: Option<Box<ChatTemplate>>,
}

/// A rendered conversation, with the turns of the assistant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text to tokenize, without adding special tokens: the template wrote them. What looks like
    /// one in a message becomes one, as it does by default in transformers.
    pub text: String,
    /// The bytes of `text` inside `{% generation %}` blocks; `None` of a template without any.
    pub assistant: Option<Vec<Range<usize>>>,
}

impl Rendered {
    /// The mask of the tokens that the assistant says, from their bytes in the text (`tokenizers` calls them
    /// offsets): those from the one that holds a block's first byte to the one that holds its
    /// last, as in transformers.
    pub fn assistant_mask(&self, offsets: &[(usize, usize)]) -> Option<Vec<bool>> {
        let blocks = self.assistant.as_ref()?;
        let mut mask = vec![false; offsets.len()];
        for block in blocks.iter().filter(|block| !block.is_empty()) {
            let holds = |byte: usize| offsets.iter().position(|o| (o.0..o.1).contains(&byte));
            let Some(first) = holds(block.start) else {
                continue;
            };
            let last = holds(block.end - 1).unwrap_or(offsets.len() - 1);
            mask[first..=last].fill(true);
        }
        Some(mask)
    }
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template. `now` is what `strftime_now` tells: a template that writes today's
    /// date gives other tokens tomorrow, so a run should keep one.
    ///
    /// # Errors
    ///
    /// The source cannot be compiled.
    pub fn new(source: &str, now: OffsetDateTime) -> Result<Self, Error> {
        let marks = unused_marks(source);
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        environment.set_syntax(syntax.trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Raised))
            },
        );
        environment.add_function("strftime_now", move |format: &str| strftime(now, format));
        let [open, close] = marks;
        environment.add_filter(GENERATION, move |said: &str| format!("{open}{said}{close}"));
        // Nothing cannot be iterated in Python.
        environment.add_test("iterable", |value: &Value| {
            !value.is_none() && value.try_iter().is_ok()
        });
        environment.set_formatter(|out, state, value| {
            if value.kind() == ValueKind::Number {
                Ok(out.write_str(&number(value)?)?)
            } else {
                minijinja::escape_formatter(out, state, value)
            }
        });
        environment.add_template_owned(NAME, generation_as_filter(source))?;
        Ok(Self {
            environment,
            special: Vec::new(),
            marks,
            with_tools: None,
        })
    }

    /// Compiles the template of a folder with a model's `tokenizer_config.json` and, in newer ones,
    /// `chat_template.jinja`, which goes before.
    ///
    /// # Errors
    ///
    /// A file cannot be read, there is no template, or it cannot be compiled.
    pub fn open(
        folder: &Path,
        now: OffsetDateTime,
    ) -> Result<Self, Box<dyn StdError + Send + Sync>> {
        let config = fs::read_to_string(folder.join("tokenizer_config.json"))?;
        let config: Json = serde_json::from_str(&config)?;
        let beside = folder.join("chat_template.jinja");
        // Several may have names: `default`, and `tool_use` for conversations with tools.
        let named = |name: &str| {
            let of_name = config["chat_template"].as_array()?.iter();
            of_name.clone().find(|one| one["name"] == name)?["template"].as_str()
        };
        let source = if beside.exists() {
            fs::read_to_string(&beside)?
        } else {
            let one = config["chat_template"]
                .as_str()
                .or_else(|| named("default"));
            one.ok_or("tokenizer_config.json has no chat_template")?
                .to_owned()
        };
        let mut template = Self::new(&source, now)?;
        if let (false, Some(source)) = (beside.exists(), named("tool_use")) {
            template.with_tools = Some(Box::new(Self::new(source, now)?));
        }
        for (name, token) in config.as_object().into_iter().flatten() {
            // A text, or an object that holds it.
            let text = token.as_str().or_else(|| token["content"].as_str());
            if let (true, Some(text)) = (name.ends_with("_token"), text) {
                template = template.with_special_token(name, text);
            }
        }
        Ok(template)
    }

    /// A special token by the name that templates know it by, such as `bos_token`.
    pub fn with_special_token(mut self, name: &str, text: &str) -> Self {
        self.special.push((name.to_owned(), text.to_owned()));
        self.with_tools = self
            .with_tools
            .map(|other| Box::new(other.with_special_token(name, text)));
        self
    }

    /// Renders a conversation: `messages` a list of maps, `tools` a list of JSON schemas or
    /// nothing, `kwargs` a map of what else the template asks for, such as `enable_thinking`.
    ///
    /// Maps must keep the order of their keys, as a `Value` read by `serde_json` does, or
    /// `Value::from(Serde(&x))` of an `x` that does.
    ///
    /// # Errors
    ///
    /// The template refuses the conversation ([`Raised`]) or fails; there is no message; or a text has
    /// a character that marks the assistant's turns.
    pub fn render(
        &self,
        messages: Value,
        tools: Option<Value>,
        add_generation_prompt: bool,
        kwargs: &Value,
    ) -> Result<Rendered, Error> {
        if let (Some(other), Some(_)) = (&self.with_tools, &tools) {
            return other.render(messages, tools, add_generation_prompt, kwargs);
        }
        let messages = messages
            .try_iter()?
            .map(|message| as_templates_expect(&message));
        let messages = messages.collect::<Result<Vec<_>, _>>()?;
        if messages.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "a conversation without a message",
            ));
        }
        let mut context: Vec<(String, Value)> = vec![
            ("messages".into(), messages.into()),
            ("tools".into(), tools.unwrap_or_else(|| Value::from(()))),
            ("documents".into(), Value::from(())),
            ("add_generation_prompt".into(), add_generation_prompt.into()),
        ];
        let special = self.special.iter();
        context.extend(special.map(|(name, text)| (name.clone(), text.as_str().into())));
        if kwargs.kind() == ValueKind::Map {
            for name in kwargs.try_iter()? {
                context.push((name.to_string(), kwargs.get_item(&name)?));
            }
        }
        let marked = context.iter().any(|(_, value)| self.holds_a_mark(value));
        if marked {
            let what = "the conversation holds a character that marks the assistant's turns";
            return Err(Error::new(ErrorKind::InvalidOperation, what));
        }
        let context = Value::from_pairs(context);
        let template = self.environment.get_template(NAME)?;
        Ok(self.unmark(&template.render(context)?))
    }

    fn holds_a_mark(&self, value: &Value) -> bool {
        match value.kind() {
            ValueKind::String => value.as_str().is_some_and(|text| text.contains(self.marks)),
            ValueKind::Map => value.try_iter().into_iter().flatten().any(|key| {
                self.holds_a_mark(&value.get_item(&key).unwrap_or_default())
                    || self.holds_a_mark(&key)
            }),
            ValueKind::Seq | ValueKind::Iterable => value
                .try_iter()
                .into_iter()
                .flatten()
                .any(|item| self.holds_a_mark(&item)),
            _ => false,
        }
    }

    /// Takes the marks out, and says where they stood.
    fn unmark(&self, marked: &str) -> Rendered {
        let [open, close] = self.marks;
        let mut text = String::with_capacity(marked.len());
        let mut blocks: Vec<Range<usize>> = Vec::new();
        for char in marked.chars() {
            match char {
                char if char == open => blocks.push(text.len()..text.len()),
                char if char == close => blocks.last_mut().expect("opened").end = text.len(),
                char => text.push(char),
            }
        }
        let assistant = self.has_blocks().then_some(blocks);
        Rendered { text, assistant }
    }

    fn has_blocks(&self) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|template| template.source().contains(GENERATION))
    }
}

/// A message as transformers hands it to templates: without keys that are null, since many write
/// `None` otherwise, and its reasoning under each name that templates know it by.
fn as_templates_expect(message: &Value) -> Result<Value, Error> {
    const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
    let mut fields = Vec::new();
    for key in message.try_iter()? {
        let value = message.get_item(&key)?;
        if !value.is_none() {
            fields.push((key, value));
        }
    }
    let of = |name: &str| fields.iter().find(|(key, _)| key.as_str() == Some(name));
    if let Some((_, reasoning)) = REASONING.into_iter().find_map(of).cloned() {
        let thinking = of("thinking").is_none();
        fields.retain(|(key, _)| key.as_str() != Some("reasoning_content"));
        fields.push((REASONING[0].into(), reasoning.clone()));
        if thinking {
            fields.push(("thinking".into(), reasoning));
        }
    }
    Ok(Value::from_pairs(fields))
}

/// The cause of an error that a template raised by `raise_exception`, and of no other.
#[derive(Debug)]
pub struct Raised;

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the chat template refuses this conversation")
    }
}

impl StdError for Raised {}

/// A name that no template has.
const GENERATION: &str = "__generation__";

/// `{% generation %}` and its end as blocks that minijinja knows: a filter that marks what is
/// rendered, and a scope around it, since what is set inside stays there.
fn generation_as_filter(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inside = &tag[2..end];
        let trimmed = inside.trim_matches(['-', '+']).trim();
        let blocks = match trimmed {
            "generation" => Some(("with".to_owned(), format!("filter {GENERATION}"))),
            "endgeneration" => Some(("endfilter".to_owned(), "endwith".to_owned())),
            _ => None,
        };
        if let Some((first, second)) = blocks {
            let sign = |sign: Option<char>| sign.filter(|sign| "-+".contains(*sign));
            let left = sign(inside.chars().next()).map_or(String::new(), String::from);
            let right = sign(inside.chars().next_back()).map_or(String::new(), String::from);
            out.extend([
                "{%", &left, " ", &first, " %}{% ", &second, " ", &right, "%}",
            ]);
        } else {
            out.push_str(&tag[..end + 2]);
        }
        rest = &tag[end + 2..];
    }
    out.push_str(rest);
    out
}

/// Two characters for private use that the template does not.
fn unused_marks(source: &str) -> [char; 2] {
    let mut unused = ('\u{e000}'..='\u{f8ff}').filter(|&mark| !source.contains(mark));
    let mut next = || unused.next().expect("a template uses few of 6400");
    [next(), next()]
}

/// Python's `strftime` at a fixed time.
fn strftime(now: OffsetDateTime, format: &str) -> Result<String, Error> {
    let refused = |error: &dyn StdError| {
        let what = format!("strftime_now({format:?}): {error}");
        Error::new(ErrorKind::InvalidOperation, what)
    };
    let items = time::format_description::parse_strftime_borrowed(format);
    let items = items.map_err(|error| refused(&error))?;
    now.format(&items).map_err(|error| refused(&error))
}
