//! The model and the adapter of a run on disk, and what stands beside them unused.

use std::fs;
use std::path::Path;

use finetune::{Failure, Source, say};
use serde_json::Value;

use crate::args::Args;

/// Places of the model and of the adapter that is merged into it.
pub(crate) struct Sources {
    pub(crate) model: Source,
    pub(crate) adapter: Option<Source>,
}

impl Sources {
    /// Finds both, and says what is not used of them.
    ///
    /// # Errors
    ///
    /// One is not there, or the model is an adapter alone.
    pub(crate) fn find(args: &Args) -> Result<Self, Failure> {
        let weights = ["model.safetensors", "model.safetensors.index.json"];
        let needed = [
            &["config.json"][..],
            &weights,
            &["tokenizer.json"],
            &["tokenizer_config.json"],
        ];
        let model =
            Source::find(&args.model, &needed).map_err(|error| format!("--model {error}"))?;
        let weights = ["adapter_model.safetensors", "adapter_model.bin"];
        let needed = [&["adapter_config.json"][..], &weights];
        let adapter = args.adapter.as_ref().map(|written| {
            let found = Source::find(written, &needed);
            found.map_err(|error| format!("--adapter {error}"))
        });
        let adapter = adapter.transpose()?;
        let has_adapter = model.path.join("adapter_config.json").exists();
        if has_adapter && !model.path.join("config.json").exists() {
            let model = args.model.display();
            let base = base(&args.model).unwrap_or_else(|| "BASE".to_owned());
            let what = format!("is an adapter of {base}: --model {base} --adapter {model}");
            return Err(format!("--model: {model} {what}").into());
        }
        let sources = Self { model, adapter };
        if has_adapter && sources.adapter.as_ref().map(|of| &of.path) != Some(&sources.model.path) {
            say!(
                "look: {0} has adapter_config.json beside its weights: the weights are taken as they \
                 are. If the adapter is not merged into them, `--adapter {0}` adds it (transformers \
                 with PEFT adds it in any case)",
                args.model.display()
            );
        }
        sources.look_at_base();
        sources.look_at_template();
        Ok(sources)
    }

    /// Says if an adapter names another base than the model, by all names that the model has.
    fn look_at_base(&self) {
        let Some(adapter) = &self.adapter else {
            return;
        };
        let Some(base) = base(&adapter.path) else {
            return;
        };
        let end = |name: &str| {
            let name = name.trim_end_matches('/');
            name.rsplit('/').next().unwrap_or(name).to_lowercase()
        };
        let config = json(&self.model.path.join("config.json"));
        let before = config.and_then(|config| Some(config["_name_or_path"].as_str()?.to_owned()));
        let mut names = [Some(self.model.name()), before].into_iter().flatten();
        if !names.any(|name| end(&name) == end(&base)) {
            say!(
                "look: {} was trained on {base}, and is merged into {}: if these are not the same \
                 weights, this is another model",
                adapter.path.display(),
                self.model.name()
            );
        }
    }

    /// Says which template an adapter brings that is not used.
    fn look_at_template(&self) {
        let Some(adapter) = &self.adapter else {
            return;
        };
        let Some(learnt) = template(&adapter.path) else {
            return;
        };
        // Of a GGUF file, the template is in its metadata.
        let used = template(&self.model.path);
        if used.as_ref() != Some(&learnt) && !self.model.path.is_file() {
            let [adapter, model] = [adapter, &self.model].map(|of| of.path.display());
            let of_model = match used {
                Some(_) => format!("that of {model} is another one, and is used"),
                None => format!("{model} has none"),
            };
            say!(
                "look: the chat template of {adapter} is not used, and {of_model}: the adapter may \
                 have learnt prompts of another form"
            );
        }
    }
}

/// The base that an adapter names.
fn base(adapter: &Path) -> Option<String> {
    let config = json(&adapter.join("adapter_config.json"))?;
    Some(config["base_model_name_or_path"].as_str()?.to_owned())
}

/// The source of a folder's usual chat template.
fn template(folder: &Path) -> Option<String> {
    let alone = fs::read_to_string(folder.join("chat_template.jinja"));
    alone.ok().or_else(|| {
        let config = json(&folder.join("tokenizer_config.json"))?;
        Some(config["chat_template"].as_str()?.to_owned())
    })
}

fn json(path: &Path) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}
