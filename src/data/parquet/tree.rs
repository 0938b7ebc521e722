//! The type of a column as a tree, and its rows put together from the levels of its leaves.

use ::parquet::basic::{ConvertedType, LogicalType, Repetition};
use ::parquet::schema::types::Type;

use crate::data::json::{Json, Object};

/// A column's type: what stands at its leaves, and the levels that put them together.
///
/// A leaf has an entry for each value and for each place where one could be. Its definition level
/// counts the optional and repeated ancestors that are there; its repetition level says which list
/// it continues, and 0 begins a row.
#[derive(Debug)]
pub(super) enum Tree {
    /// A value.
    Leaf { definition: i16, leaf: usize },
    /// An object.
    Struct {
        definition: i16,
        fields: Vec<(String, Tree)>,
    },
    /// A list; its items have this repetition level but for the first, and one definition level more.
    List {
        definition: i16,
        repetition: i16,
        item: Box<Tree>,
    },
    /// A list of keys with their values, as an object.
    Map {
        definition: i16,
        repetition: i16,
        key: Box<Tree>,
        value: Box<Tree>,
    },
}

/// Definition and repetition level of a node.
#[derive(Clone, Copy)]
struct Levels {
    definition: i16,
    repetition: i16,
}

impl Tree {
    /// The tree of a column; it has the leaves from 0 on.
    ///
    /// # Errors
    ///
    /// The description of a type that means nothing.
    pub(super) fn of(column: &Type) -> Result<Self, String> {
        let mut leaves = 0;
        let levels = Levels {
            definition: 0,
            repetition: 0,
        };
        Self::node(column, levels, &mut leaves)
    }

    fn node(of: &Type, mut levels: Levels, leaves: &mut usize) -> Result<Self, String> {
        match of.get_basic_info().repetition() {
            Repetition::REQUIRED => {}
            Repetition::OPTIONAL => levels.definition += 1,
            // Outside of a list's type: a list of values that are there.
            Repetition::REPEATED => {
                let inner = Levels {
                    definition: levels.definition + 1,
                    repetition: levels.repetition + 1,
                };
                return Ok(Self::List {
                    definition: levels.definition,
                    repetition: inner.repetition,
                    item: Box::new(Self::value(of, inner, leaves)?),
                });
            }
        }
        Self::value(of, levels, leaves)
    }

    /// The node of a type whose own repetition is counted.
    fn value(of: &Type, levels: Levels, leaves: &mut usize) -> Result<Self, String> {
        let Levels { definition, .. } = levels;
        if of.is_primitive() {
            let leaf = *leaves;
            *leaves += 1;
            return Ok(Self::Leaf { definition, leaf });
        }
        let repeated = || match of.get_fields() {
            [only] if only.get_basic_info().repetition() == Repetition::REPEATED => {
                let inner = Levels {
                    definition: definition + 1,
                    repetition: levels.repetition + 1,
                };
                Some((only, inner))
            }
            _ => None,
        };
        if matches!(
            of.get_basic_info().logical_type_ref(),
            Some(LogicalType::Variant(_))
        ) {
            return Err("a variant, which is a binary form of JSON".to_owned());
        }
        match of.get_basic_info().converted_type() {
            ConvertedType::LIST => {
                let (items, inner) = repeated().ok_or("a list of an unknown form")?;
                let item = match items.is_group().then(|| items.get_fields()) {
                    Some([field]) if !is_item(items, field) => Self::node(field, inner, leaves)?,
                    _ => Self::value(items, inner, leaves)?,
                };
                Ok(Self::List {
                    definition,
                    repetition: inner.repetition,
                    item: Box::new(item),
                })
            }
            ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE => {
                let (entries, inner) = repeated().ok_or("a map of an unknown form")?;
                match entries.is_group().then(|| entries.get_fields()) {
                    Some([key, value]) => Ok(Self::Map {
                        definition,
                        repetition: inner.repetition,
                        key: Box::new(Self::node(key, inner, leaves)?),
                        value: Box::new(Self::node(value, inner, leaves)?),
                    }),
                    _ => Err("a map of an unknown form".to_owned()),
                }
            }
            _ => {
                let mut fields: Vec<(String, Self)> = Vec::new();
                for field in of.get_fields() {
                    let name = field.name();
                    if fields.iter().any(|(other, _)| other == name) {
                        return Err(format!("an object with the field `{name}` twice"));
                    }
                    fields.push((name.to_owned(), Self::node(field, levels, leaves)?));
                }
                if fields.is_empty() {
                    return Err("an object without fields".to_owned());
                }
                Ok(Self::Struct { definition, fields })
            }
        }
    }

    fn definition(&self) -> i16 {
        let (Self::Leaf { definition, .. }
        | Self::Struct { definition, .. }
        | Self::List { definition, .. }
        | Self::Map { definition, .. }) = self;
        *definition
    }

    /// The first leaf, whose levels speak for the node.
    fn first(&self) -> usize {
        match self {
            Self::Leaf { leaf, .. } => *leaf,
            Self::Struct { fields, .. } => fields[0].1.first(),
            Self::List { item, .. } => item.first(),
            Self::Map { key, .. } => key.first(),
        }
    }

    /// Takes the next value off the leaves; `None` if they end within it.
    pub(super) fn take(&self, leaves: &mut [Leaf]) -> Option<Json> {
        let level = leaves[self.first()].definition()?;
        if level < self.definition() {
            self.skip(leaves)?;
            return Some(Json::Null);
        }
        match self {
            Self::Leaf { leaf, .. } => leaves[*leaf].take(),
            Self::Struct { fields, .. } => {
                let field =
                    |(name, field): &(String, Self)| Some((name.clone(), field.take(leaves)?));
                fields
                    .iter()
                    .map(field)
                    .collect::<Option<Object>>()
                    .map(Json::Object)
            }
            Self::List {
                definition,
                repetition,
                item,
            } => {
                let mut items = Vec::new();
                if level == *definition {
                    self.skip(leaves)?;
                    return Some(Json::Array(items));
                }
                loop {
                    items.push(item.take(leaves)?);
                    if leaves[self.first()].repetition() < *repetition {
                        return Some(Json::Array(items));
                    }
                }
            }
            Self::Map {
                definition,
                repetition,
                key,
                value,
            } => {
                let mut entries = Vec::new();
                if level == *definition {
                    self.skip(leaves)?;
                    return Some(Json::Object(Object::default()));
                }
                loop {
                    entries.push((key.take(leaves)?, value.take(leaves)?));
                    if leaves[self.first()].repetition() < *repetition {
                        return Some(map(entries));
                    }
                }
            }
        }
    }

    /// Takes the one entry off each leaf that a missing value has.
    fn skip(&self, leaves: &mut [Leaf]) -> Option<()> {
        match self {
            Self::Leaf { leaf, .. } => leaves[*leaf].take().map(drop),
            Self::Struct { fields, .. } => {
                fields.iter().try_for_each(|(_, field)| field.skip(leaves))
            }
            Self::List { item, .. } => item.skip(leaves),
            Self::Map { key, value, .. } => {
                key.skip(leaves)?;
                value.skip(leaves)
            }
        }
    }
}

/// Whether the repeated type of a list is its item, and not a wrapper around it: the rules of
/// Parquet for files of old programs.
fn is_item(repeated: &Type, field: &Type) -> bool {
    let is_list = matches!(
        repeated.get_basic_info().converted_type(),
        ConvertedType::LIST | ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE
    );
    is_list
        || field.get_basic_info().repetition() == Repetition::REPEATED
        || repeated.name() == "array"
        || repeated.name().ends_with("_tuple")
}

/// An object, as JSON has it: its keys are strings, and none stands twice.
fn map(entries: Vec<(Json, Json)>) -> Json {
    let mut object = Object::default();
    for (key, value) in entries {
        let name = match key {
            Json::String(name) => name,
            Json::Number(number) => number.to_string(),
            Json::Bool(value) => value.to_string(),
            other => return Json::NotJson(format!("a map with the key {other}")),
        };
        if object.get(&name).is_some() {
            return Json::NotJson(format!("a map with the key `{name}` twice"));
        }
        object.insert(name, value);
    }
    Json::Object(object)
}

/// Some rows of a leaf: its levels and its values.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    /// The level at which there is a value.
    pub most: i16,
    /// Definition levels; without any, all values are there.
    pub definitions: Vec<i16>,
    /// Repetition levels; without any, each entry is a row.
    pub repetitions: Vec<i16>,
    /// The number of entries.
    pub entries: usize,
    /// The values of the entries that have one.
    pub values: std::vec::IntoIter<Json>,
    /// The next entry.
    pub place: usize,
}

impl Leaf {
    /// The definition level of the next entry.
    fn definition(&self) -> Option<i16> {
        let level = || self.definitions.get(self.place).copied();
        (self.place < self.entries).then(|| level().unwrap_or(self.most))
    }

    /// Whether all entries are taken.
    pub(super) fn is_at_end(&self) -> bool {
        self.place == self.entries
    }

    /// The repetition level of the next entry; where there is none, another row begins.
    fn repetition(&self) -> i16 {
        self.repetitions.get(self.place).copied().unwrap_or(0)
    }

    /// Takes the next entry off: its value, or null.
    fn take(&mut self) -> Option<Json> {
        let level = self.definition()?;
        self.place += 1;
        if level < self.most {
            return Some(Json::Null);
        }
        self.values.next()
    }
}
