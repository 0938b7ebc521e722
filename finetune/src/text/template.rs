//! A model's own chat template: what transformers' `apply_chat_template` renders, and which of it the
//! assistant says.
//!
//! What transformers adds to Jinja is here: `raise_exception`, `strftime_now`, its `tojson`,
//! Python's string methods, `break` and `continue`, and blocks of `{% generation %}`.
//! `tests/chat_template.rs` compares texts and masks with transformers' own. What is known to
//! differ: the filter `format` writes a number like 1e-7 as Rust does, not as Python's 1e-07; `%`
//! between texts is an error.

use std::error::Error as StdError;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};
use minijinja_contrib::pycompat::unknown_method_callback;
use time::OffsetDateTime;

use super::python_json::to_json;
use super::python_text;
use super::source::{GENERATION, prepared};
use super::tokenizer_config::TokenizerConfig;

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
    /// The mask of the tokens that the assistant says, from their bytes in the text (`tokenizers` calls
    /// them offsets): those that overlap a block, as in transformers 5.24.
    pub fn assistant_mask(&self, offsets: &[(usize, usize)]) -> Option<Vec<bool>> {
        let mut blocks = self.assistant.as_ref()?.iter().peekable();
        let spoken = offsets.iter().map(|&(start, end)| {
            // Both are in order.
            while blocks.next_if(|block| start >= block.end).is_some() {}
            blocks.peek().is_some_and(|block| end > block.start)
        });
        Some(spoken.collect())
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
        environment.add_filter("string", python_text::text);
        environment.add_filter("join", python_text::join);
        environment.set_formatter(|out, _, value| Ok(out.write_str(&python_text::text(value)?)?));
        environment.add_template_owned(NAME, prepared(source))?;
        Ok(Self {
            environment,
            special: Vec::new(),
            marks,
            with_tools: None,
        })
    }

    /// Compiles the template of a folder with a model's `tokenizer_config.json` and, in newer ones,
    /// `chat_template.jinja` and `additional_chat_templates`, which go before.
    ///
    /// # Errors
    ///
    /// A file cannot be read, there is no template, or it cannot be compiled.
    pub fn open(
        folder: &Path,
        now: OffsetDateTime,
    ) -> Result<Self, Box<dyn StdError + Send + Sync>> {
        let config = TokenizerConfig::read(folder)?;
        if config.templates.is_empty() {
            return Err(
                "no chat_template.jinja, and no chat_template in tokenizer_config.json".into(),
            );
        }
        Ok(Self::from_config(&config, now)?)
    }

    /// Of files that have a template. Several have names: `default`, and `tool_use` for conversations
    /// with tools.
    pub(super) fn from_config(
        config: &TokenizerConfig,
        now: OffsetDateTime,
    ) -> Result<Self, Error> {
        let source = |name: &str| config.templates.get(name).map(String::as_str);
        // With tools, such a model has a template all the same.
        let refused = "{{ raise_exception('none of the chat templates is named default') }}";
        let mut template = Self::new(source("default").unwrap_or(refused), now)?;
        if let Some(source) = source("tool_use") {
            template.use_with_tools(Self::new(source, now)?);
        }
        for (name, token) in config.named() {
            template = template.with_special_token(name, &token.content);
        }
        Ok(template)
    }

    /// Another template for conversations with tools.
    pub(super) fn use_with_tools(&mut self, template: Self) {
        self.with_tools = Some(Box::new(template));
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
    /// The template refuses the conversation ([`Raised`]) or fails, or cuts what a generation block
    /// has written; there is no message; or a text has a character that marks the assistant's turns.
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
        self.unmark(&template.render(context)?)
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
    fn unmark(&self, marked: &str) -> Result<Rendered, Error> {
        let [open, close] = self.marks;
        let mut text = String::with_capacity(marked.len());
        let mut blocks: Vec<Range<usize>> = Vec::new();
        // A block within another one is a part of it.
        let mut depth = 0_usize;
        let cut = || {
            let what = "the template cuts or reorders what a generation block has written";
            Error::new(ErrorKind::InvalidOperation, what)
        };
        for char in marked.chars() {
            match char {
                char if char == open => {
                    if depth == 0 {
                        blocks.push(text.len()..text.len());
                    }
                    depth += 1;
                }
                char if char == close => {
                    depth = depth.checked_sub(1).ok_or_else(cut)?;
                    if let (0, Some(block)) = (depth, blocks.last_mut()) {
                        block.end = text.len();
                    }
                }
                char => text.push(char),
            }
        }
        if depth > 0 {
            return Err(cut());
        }
        let assistant = self.has_blocks().then_some(blocks);
        Ok(Rendered { text, assistant })
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
