//! What this package computes with a model: scripts/check.py asks other programs for the same.
//!
//! ```console
//! cargo run --release -p finetune --example log_probs -- MODEL [--adapter DIR] INPUT.json
//! ```
//!
//! INPUT.json may have `ids`, rows of token ids, and `conversations`, lists of messages. The answer
//! has the `ids` of both (of a conversation to where its answer begins), and for each row the
//! log-probability of every token but the first, or of a reward model the reward at its end.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use burn::tensor::Device;
use burn_preference::data::{Example, Message, Text};
use burn_preference::tokens::{Padding, Sequence, TokenBatch};
use clap::Parser;
use finetune::{Chat, OutputLayer, load, load_adapter};
use serde::Deserialize;
use serde_json::json;

#[derive(Parser)]
struct Args {
    /// A folder, or a GGUF file.
    model: PathBuf,
    /// A folder that PEFT wrote.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// A file of JSON.
    input: PathBuf,
}

#[derive(Deserialize)]
struct Input {
    #[serde(default)]
    ids: Vec<Vec<u32>>,
    #[serde(default)]
    conversations: Vec<Vec<Said>>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let args = Args::parse();
    let device = Device::default();
    let mut model = load(&args.model, &device)?;
    if let Some(folder) = &args.adapter {
        model = load_adapter(model, folder, &device)?;
    }
    let Input {
        mut ids,
        conversations,
    } = serde_json::from_str(&fs::read_to_string(&args.input)?)?;
    if !conversations.is_empty() {
        let chat = Chat::open(&args.model, model.config())?;
        for messages in conversations {
            let messages = messages
                .iter()
                .map(|said| Message::new(&said.role, &said.content));
            ids.push(chat.prompt(&Example::prompt_only(Text::Conversation(
                messages.collect(),
            )))?);
        }
    }
    let (mut log_probs, mut rewards) = (Vec::new(), Vec::new());
    for row in &ids {
        let (first, rest) = row.split_first().ok_or("a row without ids")?;
        // Nothing of it is padding.
        let row = Sequence::new(&[*first], rest);
        let batch = TokenBatch::new(vec![row], Padding::new(0), &device)?;
        if model.config().output == OutputLayer::Reward {
            let found = batch.at_end(model.rewards(batch.ids.clone()))?;
            rewards.push(found.into_scalar::<f64>());
        } else {
            let found = batch.token_log_probs(model.hidden(batch.ids.clone()))?;
            let found: Vec<f64> = found.log_probs().into_data().iter().collect();
            log_probs.push(found);
        }
    }
    println!(
        "{}",
        json!({"ids": ids, "log_probs": log_probs, "rewards": rewards})
    );
    Ok(())
}
