//! The objective comes from a file: an experiment is a JSON, a typo is an error with a name.
//!
//! ```text
//! cargo run --example config_file
//! ```

mod toy;

use burn::tensor::Device;
use burn_preference::config::{PairObjective, PairObjectiveConfig};
use burn_preference::{Frozen, Objective};
use toy::Bigram;

const FILE: &str = r#"{
    "loss": "with_sft",
    "weight": 0.2,
    "objective": {"loss": "dpo", "beta": 0.1, "label_noise": {"conservative": 0.1}}
}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config: PairObjectiveConfig = serde_json::from_str(FILE)?;

    let device = Device::default();
    let policy = Bigram::new(&device);
    let pairs = toy::pairs(&device);
    let ours = pairs.tokens.log_probs(&policy, Bigram::hidden)?;
    let output = match config.try_init()? {
        PairObjective::Referenced(objective) => {
            let reference = Frozen::new(&policy);
            let theirs = pairs.tokens.reference(&reference, Bigram::hidden)?;
            objective.forward(pairs.pair(ours.relative_to(theirs)?)?)
        }
        PairObjective::ReferenceFree(objective) => objective.forward(pairs.pair(ours)?),
    };
    println!("loss {:.4}", output.mean().into_scalar::<f32>());

    // A misspelt key, and a value outside its range.
    let typo = r#"{"loss": "dpo", "betta": 0.1}"#;
    println!(
        "{}",
        serde_json::from_str::<PairObjectiveConfig>(typo).unwrap_err()
    );
    let range: PairObjectiveConfig = serde_json::from_str(r#"{"loss": "dpo", "beta": -1}"#)?;
    println!("{}", range.try_init().expect_err("β must be positive"));
    Ok(())
}
