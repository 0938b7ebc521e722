//! The objective comes from a file: an experiment is a JSON, a typo is an error with a name.
//!
//! ```text
//! cargo run --example config_file
//! ```

mod toy;

use burn::tensor::Device;
use burn_preference::config::{Configured, ObjectiveConfig};
use burn_preference::{Frozen, Objective, ReferencedPair};
use toy::Bigram;

const FILE: &str = r#"{
    "loss": "with_sft",
    "weight": 0.2,
    "objective": {"loss": "dpo", "beta": 0.1, "label_noise": {"conservative": 0.1}}
}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config: ObjectiveConfig = serde_json::from_str(FILE)?;
    // Its needs are known before there is a batch: whether to make a reference, for one.
    println!("takes {}", config.takes()[0]);
    let objective: Configured<ReferencedPair> = config.build()?;

    let device = Device::default();
    let policy = Bigram::new(&device);
    let pairs = toy::pairs(&device);
    let ours = pairs.tokens.log_probs(&policy, Bigram::hidden)?;
    let reference = Frozen::new(&policy);
    let theirs = pairs.tokens.reference(&reference, Bigram::hidden)?;
    let output = objective.forward(pairs.pair(ours.relative_to(theirs)?)?);
    println!("loss {:.4}", output.mean().into_scalar::<f32>());

    // A misspelt key, a value outside its range, and an objective of other batches.
    let typo = r#"{"loss": "dpo", "betta": 0.1}"#;
    println!(
        "{}",
        serde_json::from_str::<ObjectiveConfig>(typo).unwrap_err()
    );
    for json in [r#"{"loss": "dpo", "beta": -1}"#, r#"{"loss": "kto"}"#] {
        let config: ObjectiveConfig = serde_json::from_str(json)?;
        println!("{}", config.build::<ReferencedPair>().unwrap_err());
    }
    Ok(())
}
