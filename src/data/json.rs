use std::fmt;
use std::ops::Index;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess,
    Visitor,
};
use serde::ser::{Error as _, Serialize, SerializeMap, Serializer};
use serde_json::{Number, Value};

/// A value of JSON whose objects keep the order of their keys and have no key twice.
///
/// A chat template prints the arguments of tools, and a model is trained on their order;
/// `serde_json`'s own `Value` sorts them. Its feature `preserve_order` would change every map of
/// your program, so rows have a type of their own. `Display` and `Serialize` write JSON.
///
/// A column that nobody reads may hold anything. So a value that JSON does not have is a value
/// here, [`NotJson`](Self::NotJson), and an error only where it is read or serialised.
///
/// ```
/// use burn_preference::data::Json;
///
/// let text = r#"{"unit":"C","city":"Oslo"}"#;
/// let arguments: Json = serde_json::from_str(text)?;
/// assert_eq!(arguments.to_string(), text);
/// assert_eq!(arguments.get("city").and_then(Json::as_str), Some("Oslo"));
///
/// let twice = serde_json::from_str::<Json>(r#"[{"a": 1, "a": 2}]"#).unwrap_err();
/// assert!(twice.to_string().starts_with("the field `a` stands twice"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Json {
    /// The value `null`.
    #[default]
    Null,
    /// The value `true` or `false`.
    Bool(bool),
    /// A number, as `serde_json` reads it: integers beyond 64 bits are rounded to `f64`.
    Number(Number),
    /// A string of characters.
    String(String),
    /// A list of values.
    Array(Vec<Json>),
    /// An object: fields in their order.
    Object(Object),
    /// A value of a file that JSON does not have, such as NaN or bytes, or that is not read, such
    /// as one with a key twice or of more than 128 levels: its description. It cannot be
    /// serialised.
    NotJson(String),
}

impl Json {
    /// The field of an object; `None` if there is none, or no object.
    pub fn get(&self, name: &str) -> Option<&Json> {
        self.as_object()?.get(name)
    }

    /// The string, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The truth value, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The number, if it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Number(number) => number.as_f64(),
            _ => None,
        }
    }

    /// The list, if it is one.
    pub fn as_array(&self) -> Option<&[Json]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// The object, if it is one.
    pub fn as_object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            _ => None,
        }
    }

    /// Whether the value is `null`.
    pub fn is_null(&self) -> bool {
        *self == Self::Null
    }

    /// The kind of the value, for errors.
    pub(super) fn kind(&self) -> &str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(items) if items.is_empty() => "an empty list",
            Self::Array(_) => "a list",
            Self::Object(_) => "an object",
            Self::NotJson(description) => description,
        }
    }
}

/// As compact JSON; what JSON does not have is its description in angle brackets.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = |place: usize| if place > 0 { "," } else { "" };
        match self {
            Self::NotJson(description) => write!(f, "<{description}>"),
            Self::Array(items) => {
                f.write_str("[")?;
                for (place, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", separator(place))?;
                }
                f.write_str("]")
            }
            Self::Object(object) => {
                f.write_str("{")?;
                for (place, (name, value)) in object.iter().enumerate() {
                    let name = serde_json::to_string(name).map_err(|_| fmt::Error)?;
                    write!(f, "{}{name}:{value}", separator(place))?;
                }
                f.write_str("}")
            }
            single => f.write_str(&serde_json::to_string(single).map_err(|_| fmt::Error)?),
        }
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

/// `null` if it is not finite, which JSON cannot say.
impl From<f64> for Json {
    fn from(number: f64) -> Self {
        Number::from_f64(number).map_or(Self::Null, Self::Number)
    }
}

/// In the order in which `serde_json` has the keys.
impl From<Value> for Json {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(value),
            Value::Number(number) => Self::Number(number),
            Value::String(text) => Self::String(text),
            Value::Array(items) => Self::Array(items.into_iter().map(Self::from).collect()),
            Value::Object(fields) => {
                let fields = fields.into_iter();
                let fields = fields.map(|(name, value)| (name, Self::from(value)));
                Self::Object(Object(fields.collect()))
            }
        }
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::String(text) => serializer.serialize_str(text),
            Self::Array(items) => items.serialize(serializer),
            Self::Object(object) => object.serialize(serializer),
            Self::NotJson(description) => {
                let message = format!("JSON does not have this value: {description}");
                Err(S::Error::custom(message))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        AnyValue { marks: false }.deserialize(deserializer)
    }
}

/// Reads a value; where `marks`, as [`marked`] has prepared it.
#[derive(Clone, Copy)]
struct AnyValue {
    marks: bool,
}

impl<'de> DeserializeSeed<'de> for AnyValue {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AnyValue {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Json, E> {
        let number = Number::from_f64(value);
        let number =
            number.ok_or_else(|| E::custom(format!("the number {value} is not finite")))?;
        Ok(Json::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::String(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Json, E> {
        Ok(Json::String(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Json, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = access.next_key()? {
            fields.push((name, access.next_value_seed(self)?));
        }
        if self.marks
            && let [(name, Json::String(description))] = fields.as_slice()
            && name == MARK
        {
            return Ok(Json::NotJson(description.clone()));
        }
        // How `serde_json` hands numbers over where somebody turned on `arbitrary_precision`.
        if let [(name, Json::String(digits))] = fields.as_slice()
            && name == "$serde_json::private::Number"
        {
            let number = serde_json::from_str(digits).map_err(A::Error::custom)?;
            return Ok(Json::Number(number));
        }
        Object::from_fields(fields).map(Json::Object)
    }
}

/// The only key of an object that stands for a value which JSON does not have.
const MARK: &str = "$burn_preference::NotJson";

/// Reads a value; what JSON does not have is [`Json::NotJson`].
///
/// `json.dumps` of Python writes NaN and Infinity, and halves of characters.
#[cfg(feature = "parquet")]
pub(super) fn read_value(text: &[u8]) -> Result<Json, serde_json::Error> {
    serde_json::from_slice(text).or_else(|error| read(&marked(text).ok_or(error)?, true))
}

fn read(text: &[u8], marks: bool) -> Result<Json, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = AnyValue { marks }.deserialize(&mut reader)?;
    reader.end().map(|()| value)
}

/// Reads a row; its values as [`read_value`] does. A column whose value has a key twice, or is
/// nested too deeply, is [`Json::NotJson`].
pub(super) fn read_row(text: &[u8]) -> Result<Object, serde_json::Error> {
    serde_json::from_slice(text).or_else(|error| by_column(text).ok_or(error))
}

/// Reads the columns of a row one by one; `None` where the row is not JSON throughout, or has a
/// column twice.
fn by_column(text: &[u8]) -> Option<Object> {
    let marked = marked(text);
    let (text, marks) = (marked.as_deref().unwrap_or(text), marked.is_some());
    // It has no limit of depth, and keeps no keys.
    serde_json::from_slice::<IgnoredAny>(text).ok()?;
    let mut rest = text.trim_ascii().strip_prefix(b"{")?.strip_suffix(b"}")?;
    let mut fields = Vec::new();
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Object::from_fields::<serde_json::Error>(fields).ok();
        }
        let (name, after) = rest.split_at(string_end(rest)?);
        let after = after.trim_ascii_start().strip_prefix(b":")?;
        let (value, after) = after.split_at(value_end(after)?);
        let value = read(value, marks).unwrap_or_else(|error| Json::NotJson(not_read(&error)));
        fields.push((serde_json::from_slice(name).ok()?, value));
        rest = after.strip_prefix(b",").unwrap_or(after);
    }
}

/// The number of bytes of the value that a text begins with, up to a comma behind it.
fn value_end(text: &[u8]) -> Option<usize> {
    let (mut place, mut depth) = (0, 0_usize);
    while let Some(byte) = text.get(place) {
        place += match byte {
            b'"' => string_end(&text[place..])?,
            b',' if depth == 0 => break,
            _ => 1,
        };
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    Some(place)
}

/// The description of a value that is JSON and is not read.
fn not_read(error: &serde_json::Error) -> String {
    let error = error.to_string();
    match error.split(" at line").next().unwrap_or_default() {
        "recursion limit exceeded" => "a value of more than 128 levels".to_owned(),
        error => format!("a value in which {error}"),
    }
}

/// The same text with a mark in the place of each value that JSON does not have; `None` where there
/// is none.
fn marked(text: &[u8]) -> Option<Vec<u8>> {
    if text.windows(MARK.len()).any(|some| some == MARK.as_bytes()) {
        return None;
    }
    let mut marked = Vec::with_capacity(text.len());
    let mut marks = 0;
    let mut rest = text;
    while let Some(&first) = rest.first() {
        let end = match first {
            b'"' => string_end(rest)?,
            b'{' | b'}' | b'[' | b']' | b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => 1,
            _ => {
                let is_end = |byte: &u8| b"{}[],:\" \t\n\r".contains(byte);
                rest.iter().position(is_end).unwrap_or(rest.len())
            }
        };
        let (token, after) = rest.split_at(end);
        let is_name = || after.trim_ascii_start().first() == Some(&b':');
        match not_json(token) {
            Some(description) if !is_name() => {
                let mark = [(MARK, Json::String(description))].into_iter();
                marked.extend(Json::Object(mark.collect()).to_string().into_bytes());
                marks += 1;
            }
            _ => marked.extend(token),
        }
        rest = after;
    }
    (marks > 0).then_some(marked)
}

/// The number of bytes of the string that a text begins with.
fn string_end(text: &[u8]) -> Option<usize> {
    let mut place = 1;
    loop {
        match text.get(place)? {
            b'"' => return Some(place + 1),
            b'\\' => place += 2,
            _ => place += 1,
        }
    }
}

/// The description of a string or a number that JSON does not have.
fn not_json(token: &[u8]) -> Option<String> {
    if token.starts_with(b"\"") {
        let error = serde_json::from_slice::<String>(token).err()?.to_string();
        if std::str::from_utf8(token).is_err() {
            let help = "`iconv -f LATIN1 -t UTF-8` makes UTF-8 of Latin-1";
            return Some(format!("a string that is not UTF-8 ({help})"));
        }
        let error = error.split(" at line").next().unwrap_or_default();
        return Some(format!("a string that is none ({error})"));
    }
    let token = std::str::from_utf8(token).ok()?;
    match token {
        "NaN" | "Infinity" | "-Infinity" => Some(token.to_owned()),
        _ if token.ends_with(|last: char| last.is_ascii_digit()) => {
            let number = token.parse::<f64>().ok()?;
            number
                .is_infinite()
                .then(|| format!("{token}, which is beyond f64"))
        }
        _ => None,
    }
}

/// The fields of a JSON object in their order, none of them twice.
///
/// Equal objects have the same fields, in any order.
#[derive(Debug, Clone, Default)]
pub struct Object(Vec<(String, Json)>);

impl Object {
    /// Fails where a field stands twice.
    fn from_fields<E: serde::de::Error>(fields: Vec<(String, Json)>) -> Result<Self, E> {
        let object = Self(fields);
        let twice = object.sorted().windows(2).find_map(|two| {
            let [first, second] = two else { return None };
            (first.0 == second.0).then(|| first.0.clone())
        });
        match twice {
            Some(name) => Err(E::custom(format!("the field `{name}` stands twice"))),
            None => Ok(object),
        }
    }

    /// An object without fields that lives for ever.
    pub(super) fn empty() -> &'static Self {
        static NONE: Object = Object(Vec::new());
        &NONE
    }

    /// In the order of their names.
    pub(super) fn sorted(&self) -> Vec<&(String, Json)> {
        let mut fields: Vec<_> = self.0.iter().collect();
        fields.sort_by_key(|field| &field.0);
        fields
    }

    /// The value of a field.
    pub fn get(&self, name: &str) -> Option<&Json> {
        self.iter()
            .find(|(field, _)| *field == name)
            .map(|(_, value)| value)
    }

    /// Sets a field: in its place if it is there, else after the others.
    pub fn insert(&mut self, name: impl Into<String>, value: Json) {
        let name = name.into();
        match self.0.iter_mut().find(|(field, _)| *field == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }

    /// Takes a field out.
    pub fn remove(&mut self, name: &str) -> Option<Json> {
        let place = self.0.iter().position(|(field, _)| field == name)?;
        Some(self.0.remove(place).1)
    }

    /// Leaves out what is null: what a record of Parquet lacks.
    pub(super) fn without_nulls(mut self) -> Self {
        self.0.retain(|(_, value)| !value.is_null());
        self
    }

    /// All fields in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Json)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }

    /// The number of fields.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A row: errors name the field that they are in.
    pub(super) fn row<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Row;

        impl<'de> Visitor<'de> for Row {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Object, A::Error> {
                let mut fields: Vec<(String, Json)> = Vec::new();
                while let Some(name) = access.next_key::<String>()? {
                    let named = |error| A::Error::custom(format!("`{name}`: {error}"));
                    let value = access.next_value().map_err(named)?;
                    fields.push((name, value));
                }
                Object::from_fields(fields)
            }
        }

        deserializer.deserialize_map(Row)
    }
}

impl PartialEq for Object {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 || (self.len() == other.len() && self.sorted() == other.sorted())
    }
}

/// The value of a field.
///
/// # Panics
///
/// Panics if there is no such field.
impl Index<&str> for Object {
    type Output = Json;

    fn index(&self, name: &str) -> &Json {
        self.get(name)
            .unwrap_or_else(|| panic!("there is no field `{name}`"))
    }
}

/// The value of a field of an object.
///
/// # Panics
///
/// Panics if it is no object with such a field.
impl Index<&str> for Json {
    type Output = Json;

    fn index(&self, name: &str) -> &Json {
        self.get(name)
            .unwrap_or_else(|| panic!("there is no field `{name}`"))
    }
}

/// Later values of a name replace earlier ones.
impl<N: Into<String>> FromIterator<(N, Json)> for Object {
    fn from_iter<I: IntoIterator<Item = (N, Json)>>(fields: I) -> Self {
        let mut object = Self::default();
        for (name, value) in fields {
            object.insert(name, value);
        }
        object
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len()))?;
        for (name, value) in self.iter() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::row(deserializer)
    }
}
