//! Objectives by their names.

use burn_preference::config::{
    PairObjective, PairObjectiveConfig, RankedObjective, RankedObjectiveConfig, RewardObjective,
    RewardObjectiveConfig, UnpairedObjective, UnpairedObjectiveConfig,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::failure::Failure;

/// An objective that was chosen by its name, by the kind of rows that it learns from.
#[derive(Debug, Clone)]
pub enum ChosenObjective {
    /// An objective over pairs.
    Pairs(PairObjective),
    /// An objective over unpaired completions.
    Unpaired(UnpairedObjective),
    /// An objective over ranked lists.
    Ranked(RankedObjective),
    /// An objective of a reward model.
    Rewards(RewardObjective),
}

impl ChosenObjective {
    /// Parses a name, such as `dpo`, or the JSON of its config: `{"loss": "ipo", "tau": 0.5}`. Some
    /// names are of two objectives (`bco`, `apo_zero`): rows with labels decide.
    ///
    /// # Errors
    ///
    /// No objective over pairs, unpaired completions or lists has this name, or a value of its config is wrong.
    pub fn parse(text: &str, is_unpaired: bool) -> Result<Self, Failure> {
        let config: Value = match text.trim_start().starts_with('{') {
            true => serde_json::from_str(text)?,
            false => json!({ "loss": text.trim() }),
        };
        let mut known = Vec::new();
        let unpaired =
            read::<UnpairedObjectiveConfig>(&config, "unpaired completions", &mut known)?;
        if let Some(config) = unpaired.as_ref().filter(|_| is_unpaired) {
            return Ok(Self::Unpaired(config.try_init()?));
        }
        if let Some(config) = read::<PairObjectiveConfig>(&config, "pairs", &mut known)? {
            return Ok(Self::Pairs(config.try_init()?));
        }
        if let Some(config) = unpaired {
            return Ok(Self::Unpaired(config.try_init()?));
        }
        if let Some(config) = read::<RankedObjectiveConfig>(&config, "lists", &mut known)? {
            return Ok(Self::Ranked(config.try_init()?));
        }
        if let Some(config) = read::<RewardObjectiveConfig>(&config, "rewards", &mut known)? {
            return Ok(Self::Rewards(config.try_init()?));
        }
        let known = known.join("; ");
        Err(format!("no file, and no objective that can be chosen here; there are {known}").into())
    }

    /// True if an example's loss depends on what else is in its forward, so that the parts of a
    /// step do not add up to it: NLLs per token, and sorted log-ratios.
    pub fn needs_whole_steps(&self) -> bool {
        fn of(config: &Value) -> bool {
            let is = |key: &str, name: &str| config[key] == name;
            let below = |inner: Option<&Value>| inner.is_some_and(of);
            let parts = config["parts"].as_array().map(Vec::as_slice);
            is("loss", "aot")
                || is("nll_normalization", "token")
                || is("normalization", "token")
                || below(config.get("objective"))
                || parts.unwrap_or_default().iter().any(of)
        }
        match self {
            Self::Pairs(objective) => of(&json!(objective.config())),
            Self::Unpaired(_) | Self::Ranked(_) | Self::Rewards(_) => false,
        }
    }

    /// True if it compares with a reference.
    pub fn needs_reference(&self) -> bool {
        match self {
            Self::Pairs(objective) => matches!(objective, PairObjective::Referenced(_)),
            Self::Unpaired(objective) => !matches!(objective, UnpairedObjective::Simnpo(_)),
            Self::Ranked(objective) => matches!(objective, RankedObjective::Referenced(_)),
            Self::Rewards(_) => false,
        }
    }

    /// True if it is a reward model's.
    pub fn learns_rewards(&self) -> bool {
        matches!(self, Self::Rewards(_))
    }
}

/// A config of one kind; none if its name is of another, and then the names of this kind in `known`.
fn read<C: DeserializeOwned>(
    config: &Value,
    kind: &str,
    known: &mut Vec<String>,
) -> Result<Option<C>, Failure> {
    match serde_json::from_value(config.clone()) {
        Ok(config) => Ok(Some(config)),
        Err(error) => {
            // The name of this objective, not of something in its config.
            let name = config["loss"].as_str().unwrap_or_default();
            let text = error.to_string();
            let others = text.strip_prefix(&format!("unknown variant `{name}`, expected one of "));
            known.push(format!("{kind}: {}", others.ok_or(error)?));
            Ok(None)
        }
    }
}
