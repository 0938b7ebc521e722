//! PEFT's `adapter_config.json`: which projections have an adapter, and of which rank and scale.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use tokenizers::utils::SysRegex;

use super::error::{AdapterError, file, json};
use crate::model::TARGETS;

/// The keys that say where adapters are, and how large their part is.
pub(super) struct AdapterConfig {
    rank: usize,
    alpha: f64,
    /// True if the scale is α/√rank (rsLoRA) instead of α/rank.
    is_stabilized: bool,
    ranks: Vec<(SysRegex, usize)>,
    alphas: Vec<(SysRegex, f64)>,
    /// `target_modules`, as the file has it.
    pub(super) targets: Value,
    target: Option<Modules>,
    excluded: Option<Modules>,
    layers: Option<Layers>,
}

/// Modules by their names, as PEFT chooses them.
enum Modules {
    /// These names, or ends of names.
    Named(Vec<String>),
    /// A regular expression for whole names.
    Matching(SysRegex),
    /// All linear layers but the last one.
    AllLinear,
}

/// The layers that are adapted, where not all of them are: a pattern for each.
struct Layers(Vec<SysRegex>);

/// Keys that do not change what a saved adapter computes, whatever they say.
const IRRELEVANT: [&str; 12] = [
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Keys that are read.
const READ: [&str; 12] = [
    "alpha_pattern",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "use_rslora",
    "bias",
];

/// Beginnings after which a saved adapter is added to the base as it was. Others (pissa, olora,
/// corda, loftq, lora_ga) change the base.
const BEGINNINGS: [&str; 4] = ["eva", "gaussian", "mica", "orthogonal"];

impl AdapterConfig {
    pub(super) fn read(folder: &Path) -> Result<Self, AdapterError> {
        let path = folder.join("adapter_config.json");
        let text = fs::read_to_string(&path).map_err(file(&path))?;
        let config: Map<String, Value> = serde_json::from_str(&text).map_err(json(&path))?;
        let patterns: Patterns = serde_json::from_str(&text).map_err(json(&path))?;
        Self::parse(&config, patterns)
    }

    fn parse(config: &Map<String, Value>, patterns: Patterns) -> Result<Self, AdapterError> {
        let of = |key: &str| config.get(key).unwrap_or(&Value::Null);
        let expect = |key: &str, expected: &str| wrong(key, expected, of(key));
        if of("peft_type") != "LORA" {
            return Err(expect("peft_type", "LORA"));
        }
        let begins = match of("init_lora_weights") {
            Value::String(name) => BEGINNINGS.contains(&name.to_lowercase().as_str()),
            other => other.is_null() || other.is_boolean(),
        };
        if !begins {
            let expected = format!("true, false or one of {BEGINNINGS:?}: others change the base");
            return Err(expect("init_lora_weights", &expected));
        }
        if !(of("bias").is_null() || of("bias") == "none") {
            return Err(expect("bias", "none"));
        }
        if let Some((key, value)) = config.iter().find(|(key, value)| {
            let is_known = READ.contains(&key.as_str()) || IRRELEVANT.contains(&key.as_str());
            !is_known && !is_off(value)
        }) {
            return Err(wrong(key, "nothing", value));
        }
        let rank = rank_of(of("r")).ok_or_else(|| expect("r", "an integer > 0"))?;
        let alpha = of("lora_alpha").as_f64();
        let is_stabilized = match of("use_rslora") {
            Value::Null => false,
            other => (other.as_bool()).ok_or_else(|| expect("use_rslora", "true or false"))?,
        };
        Ok(Self {
            rank,
            alpha: alpha.ok_or_else(|| expect("lora_alpha", "a number"))?,
            is_stabilized,
            ranks: patterns.rank_pattern.compiled("rank_pattern", rank_of)?,
            alphas: (patterns.alpha_pattern).compiled("alpha_pattern", Value::as_f64)?,
            target: Modules::parse("target_modules", of("target_modules"))?,
            targets: of("target_modules").clone(),
            excluded: Modules::parse("exclude_modules", of("exclude_modules"))?,
            layers: Layers::parse(of("layers_to_transform"), of("layers_pattern"))?,
        })
    }

    /// Rank and scale of the adapter of a module.
    pub(super) fn size(&self, module: &str) -> (usize, f64) {
        let rank = first(&self.ranks, module).unwrap_or(self.rank);
        let alpha = first(&self.alphas, module).unwrap_or(self.alpha);
        let divisor = if self.is_stabilized {
            (rank as f64).sqrt()
        } else {
            rank as f64
        };
        (rank, alpha / divisor)
    }

    /// True if a module has an adapter; nothing where the file does not say.
    pub(super) fn adapts(&self, module: &str) -> Option<bool> {
        let target = self.target.as_ref()?;
        let is_in_layer = match (target, &self.layers) {
            (Modules::Named(_), Some(Layers(patterns))) => {
                patterns.iter().any(|pattern| matches(pattern, module))
            }
            _ => true,
        };
        let is_excluded = self.excluded.as_ref().is_some_and(|of| of.contain(module));
        Some(target.contain(module) && is_in_layer && !is_excluded)
    }
}

fn wrong(key: &str, expected: &str, found: &Value) -> AdapterError {
    AdapterError::Option {
        key: key.to_owned(),
        expected: expected.to_owned(),
        found: found.to_string(),
    }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text == "none",
        _ => false,
    }
}

fn rank_of(value: &Value) -> Option<usize> {
    let rank = usize::try_from(value.as_u64()?).ok()?;
    (rank > 0).then_some(rank)
}

fn matches(pattern: &SysRegex, module: &str) -> bool {
    pattern.find_iter(module).next().is_some()
}

/// The value of the first pattern that matches, as PEFT chooses it.
fn first<T: Copy>(patterns: &[(SysRegex, T)], module: &str) -> Option<T> {
    let found = (patterns.iter()).find(|(pattern, _)| matches(pattern, module));
    found.map(|(_, value)| *value)
}

fn compile(key: &str, pattern: &str, whole: &str) -> Result<SysRegex, AdapterError> {
    SysRegex::new(whole).map_err(|error| AdapterError::Option {
        key: key.to_owned(),
        expected: "a regular expression".to_owned(),
        found: format!("{pattern:?}: {error}"),
    })
}

fn strings(value: &Value) -> Option<Vec<String>> {
    let items = value.as_array()?.iter();
    items.map(|item| item.as_str().map(str::to_owned)).collect()
}

impl Modules {
    fn parse(key: &str, value: &Value) -> Result<Option<Self>, AdapterError> {
        Ok(match value {
            Value::Null => None,
            Value::String(name) if name.to_lowercase() == "all-linear" => Some(Self::AllLinear),
            Value::String(pattern) => {
                let whole = compile(key, pattern, &format!("^(?:{pattern})$"))?;
                Some(Self::Matching(whole))
            }
            other => {
                let expected = "a list of names, a regular expression, or all-linear";
                let names = strings(other).ok_or_else(|| wrong(key, expected, other))?;
                Some(Self::Named(names))
            }
        })
    }

    fn contain(&self, module: &str) -> bool {
        match self {
            Self::Named(names) => names.iter().any(|name| {
                let before = module.strip_suffix(name.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }),
            Self::Matching(pattern) => matches(pattern, module),
            Self::AllLinear => {
                let end = module.rsplit('.').next().unwrap_or(module);
                TARGETS.contains(&end)
            }
        }
    }
}

impl Layers {
    fn parse(indices: &Value, patterns: &Value) -> Result<Option<Self>, AdapterError> {
        let wrong_indices = || wrong("layers_to_transform", "integers", indices);
        let indices: Vec<u64> = match indices {
            Value::Null => return Ok(None),
            Value::Array(items) if items.is_empty() => return Ok(None),
            Value::Array(items) => items.iter().map(Value::as_u64).collect::<Option<_>>(),
            one => one.as_u64().map(|one| vec![one]),
        }
        .ok_or_else(wrong_indices)?;
        let patterns = match patterns {
            Value::Null => vec![],
            Value::String(one) if one.is_empty() => vec![],
            Value::String(one) => vec![one.clone()],
            several => {
                let expected = "names of lists of layers";
                strings(several).ok_or_else(|| wrong("layers_pattern", expected, several))?
            }
        };
        // Without a pattern, the first number of a name is that of its layer.
        let patterns = if patterns.is_empty() {
            vec!["[^.]*".to_owned()]
        } else {
            patterns
        };
        let each = patterns.iter().flat_map(|pattern| {
            let whole = move |index| format!(r"^(?:.*?\.)??(?:{pattern})\.{index}\.");
            (indices.iter()).map(move |index| compile("layers_pattern", pattern, &whole(index)))
        });
        Ok(Some(Self(each.collect::<Result<_, _>>()?)))
    }
}

/// The two keys whose order counts.
#[derive(Deserialize)]
struct Patterns {
    #[serde(default)]
    rank_pattern: Ordered,
    #[serde(default)]
    alpha_pattern: Ordered,
}

/// An object in the order of its file.
#[derive(Default)]
struct Ordered(Vec<(String, Value)>);

impl Ordered {
    /// Each pattern, which matches the end of a name, with its value.
    fn compiled<T>(
        self,
        key: &str,
        parse: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<(SysRegex, T)>, AdapterError> {
        let expected = "patterns with numbers > 0";
        let entry = |(pattern, value): (String, Value)| {
            let number = parse(&value).ok_or_else(|| wrong(key, expected, &value))?;
            let whole = compile(key, &pattern, &format!(r"^(.*\.)?({pattern})$"))?;
            Ok((whole, number))
        };
        self.0.into_iter().map(entry).collect()
    }
}

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Ordered;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of patterns")
            }

            fn visit_unit<E>(self) -> Result<Ordered, E> {
                Ok(Ordered::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }

        deserializer.deserialize_any(Entries)
    }
}
