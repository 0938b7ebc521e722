//! The card of a model: `README.md` beside the weights, as the hub shows it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use finetune::{Failure, Hub, Source, TrainOptions};
use serde_json::{Map, Value};

/// What a card says of a model and its training.
pub(crate) struct Card<'a> {
    pub(crate) name: &'a str,
    pub(crate) base: &'a Source,
    /// The adapter that was merged into the base first.
    pub(crate) adapter: Option<&'a Source>,
    pub(crate) is_adapter: bool,
    pub(crate) is_reward_model: bool,
    pub(crate) objective: &'a Value,
    /// Numbers of examples that were trained and held out.
    pub(crate) examples: [usize; 2],
    pub(crate) training: &'a TrainOptions,
    /// The options that were given, as `--config` reads them.
    pub(crate) options: &'a Map<String, Value>,
    /// The table of held-out metrics, if something was held out.
    pub(crate) table: Option<&'a str>,
    /// Remarks for those who load the model.
    pub(crate) remarks: &'a [String],
}

impl Card<'_> {
    /// Writes the card into the folder of a model.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Failure> {
        let path = folder.join("README.md");
        let written = fs::write(&path, self.text());
        Ok(written.map_err(|error| format!("{}: {error}", path.display()))?)
    }

    fn text(&self) -> String {
        let mut text = self.head();
        let base = match &self.base.hub {
            Some(Hub { name, commit }) => {
                format!("[{name}](https://huggingface.co/{name}) (commit {commit})")
            }
            None => format!("`{}`", self.base.path.display()),
        };
        let kind = match (self.is_adapter, self.is_reward_model) {
            (true, _) => "A LoRA adapter of",
            (_, true) => "A reward model, begun from",
            _ => "A model, begun from",
        };
        let merged = self.adapter.map_or(String::new(), |adapter| {
            let name = match &adapter.hub {
                Some(hub) => hub.name.clone(),
                None => adapter.path.display().to_string(),
            };
            format!(" with the adapter `{name}` merged into it")
        });
        let [trained, held_out] = self.examples;
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\n# {}\n\n{kind} {base}{merged}, trained by `finetune` of burn-preference on the objective \
             `{}`.\n",
            self.name, self.objective
        );
        for remark in self.remarks {
            let _ = write!(text, "\n{remark}\n");
        }
        if let Some(table) = self.table {
            let _ = write!(
                text,
                "\n## Held-out examples\n\n`before` is the base, `after` the trained model, `loaded` the \
                 saved files.\n\n{table}"
            );
        }
        let data = |name: &str| {
            let value = self.options.get(name)?;
            let several = value.as_array().cloned().unwrap_or(vec![value.clone()]);
            let names = several.iter().map(|one| match one.as_str() {
                Some(path) => format!("`{path}`"),
                None => format!("`{one}`"),
            });
            Some(names.collect::<Vec<_>>().join(", "))
        };
        let _ = write!(
            text,
            "\n## Data\n\n{}: {trained} examples were trained on, {held_out} held out",
            data("data").unwrap_or_default()
        );
        let of = data("held-out-data").map_or(String::new(), |files| format!(" (of {files})"));
        let _ = write!(text, "{of}.\n\n## Settings\n\n");
        let training = self.training;
        let schedule = format!("{:?}", training.schedule).to_lowercase();
        let _ = writeln!(
            text,
            "Steps: {} of {} examples each, {} of them to warm up. AdamW: rate {:e}, {schedule}; weight decay \
             {}; gradients clipped at {}. Seed: {}. The options, as `--config` reads them:\n\n\
             ```json\n{:#}\n```",
            training.steps,
            training.batch,
            training.warm_up,
            training.rate,
            training.weight_decay,
            training.clip,
            training.seed,
            Value::Object(self.options.clone())
        );
        text
    }

    /// The lines that the hub reads.
    fn head(&self) -> String {
        let mut lines = vec!["---".to_owned()];
        let hub = self.base.hub.as_ref().map(|hub| &hub.name);
        lines.extend(hub.map(|name| format!("base_model: {name}")));
        lines.push(if self.is_adapter {
            "library_name: peft".to_owned()
        } else {
            "library_name: transformers".to_owned()
        });
        lines.push(if self.is_reward_model {
            "pipeline_tag: text-classification".to_owned()
        } else {
            "pipeline_tag: text-generation".to_owned()
        });
        lines.push("tags:".to_owned());
        let adapter = hub.map(|name| format!("base_model:adapter:{name}"));
        let of_adapter = ["lora".to_owned()].into_iter().chain(adapter);
        let tags = of_adapter.filter(|_| self.is_adapter);
        let reward = self.is_reward_model.then(|| "reward-model".to_owned());
        let objective = self.objective["loss"].as_str().map(str::to_owned);
        let tags = tags.chain(reward).chain(objective);
        lines.extend(
            tags.chain(["burn-preference".to_owned()])
                .map(|tag| format!("- {tag}")),
        );
        lines.push("---\n".to_owned());
        lines.join("\n")
    }
}
