//! Models by a path, or by a name in the local cache of Hugging Face's tools.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A model or an adapter on disk, and the name by which other programs find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Path of the folder or of the file.
    pub path: PathBuf,
    /// The name on the hub and the commit, where it was found by them.
    pub hub: Option<Hub>,
}

/// A model of the hub in one of its states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// The name, such as `HuggingFaceTB/SmolLM2-135M-Instruct`.
    pub name: String,
    /// The commit that the cache holds as `main`.
    pub commit: String,
}

/// An error of a name that stands neither for a path nor for a model in the cache.
#[derive(Debug, Error)]
pub enum SourceError {
    /// There is no such path, and the cache has no such model.
    #[error(
        "{name}: no such file or folder, and not in the cache {} either, where `hf download {name}` puts \
         it if it is a model of the hub",
        cache.display()
    )]
    NotThere {
        /// Name that was looked for.
        name: String,
        /// Folder of the cache.
        cache: PathBuf,
    },
    /// The cache has a part of a model.
    #[error(
        "{name}: the cache has it without {missing} ({}); `hf download {name}` fetches the rest, if the hub \
         has it",
        folder.display()
    )]
    NotWhole {
        /// Name of the model.
        name: String,
        /// Name of a file that is missing.
        missing: String,
        /// Folder of the model in the cache.
        folder: PathBuf,
    },
}

impl Source {
    /// Finds a path; or, if there is none and `written` is a name `ORG/NAME`, that model's state
    /// `main` in the cache (`HF_HUB_CACHE`; otherwise `hub` in `HF_HOME`, which is
    /// `~/.cache/huggingface` by default). Nothing is downloaded.
    ///
    /// Each of `needed` are files of which one is needed for the model to be whole.
    ///
    /// # Errors
    ///
    /// A name that is not in the cache, or not with the files that are needed.
    pub fn find(written: &Path, needed: &[&[&str]]) -> Result<Self, SourceError> {
        let path = written.to_owned();
        let name = written.to_str().filter(|name| is_name(name));
        let Some(name) = name.filter(|_| !path.exists()) else {
            return Ok(Self { path, hub: None });
        };
        let cache = cache();
        let model = cache.join(format!("models--{}", name.replace('/', "--")));
        let commit = fs::read_to_string(model.join("refs/main")).unwrap_or_default();
        let folder = model.join("snapshots").join(commit.trim());
        if commit.trim().is_empty() || !folder.is_dir() {
            let name = name.to_owned();
            return Err(SourceError::NotThere { name, cache });
        }
        let name = name.to_owned();
        let is_gone = |files: &[&str]| !files.iter().any(|file| folder.join(file).exists());
        if let Some(missing) = needed.iter().find(|files| is_gone(files)) {
            let missing = missing.join(" or ");
            return Err(SourceError::NotWhole {
                name,
                missing,
                folder,
            });
        }
        let commit = commit.trim().to_owned();
        let hub = Some(Hub { name, commit });
        Ok(Self { path: folder, hub })
    }

    /// The name by which other programs find it from any folder: that of the hub, or an absolute
    /// path.
    pub fn name(&self) -> String {
        match &self.hub {
            Some(hub) => hub.name.clone(),
            None => std::path::absolute(&self.path)
                .unwrap_or_else(|_| self.path.clone())
                .display()
                .to_string(),
        }
    }
}

/// True for names as the hub has them: two parts of letters, digits and `-_.`.
fn is_name(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let is_part = |part: &&str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(known)
    };
    parts.len() == 2 && parts.iter().all(is_part)
}

/// The folder of the cache, as `huggingface_hub` finds it.
fn cache() -> PathBuf {
    let folder = |name: &str| {
        let written = env::var(name).ok().filter(|value| !value.is_empty());
        written.map(|value| match (value.strip_prefix("~/"), env::home_dir()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => value.into(),
        })
    };
    let cache = folder("HF_HUB_CACHE").or_else(|| folder("HUGGINGFACE_HUB_CACHE"));
    cache.unwrap_or_else(|| {
        let home = folder("HF_HOME").unwrap_or_else(|| {
            let usual = || env::home_dir().unwrap_or_default().join(".cache");
            let all = folder("XDG_CACHE_HOME").unwrap_or_else(usual);
            all.join("huggingface")
        });
        home.join("hub")
    })
}
