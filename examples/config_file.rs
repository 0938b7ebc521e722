//! The objective comes from a file: an experiment is a JSON, a typo is an error with a name.
//!
//! ```text
//! cargo run --example config_file
//! ```

mod toy;

use burn::tensor::Device;
use burn_preference::config::{PairObjective, PairObjectiveConfig};
use burn_preference::{Frozen, Objective, PolicyPair};
use toy::{Bigram, Rows};

const FILE: &str = r#"{
    "loss": "with_sft",
    "weight": 0.2,
    "objective": {"loss": "dpo", "beta": 0.1, "label_noise": {"conservative": 0.1}}
}"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config: PairObjectiveConfig = serde_json::from_str(FILE)?;

    let device = Device::default();
    let policy = Bigram::new(&device);
    let rows = Rows::new(
        [[0, 1, 2, 7], [0, 3, 4, 5], [0, 5, 4, 7], [0, 2, 2, 2]],
        &device,
    );
    let pair = PolicyPair::from_concatenated(&policy.log_probs(&rows)?)?;
    let output = match config.try_init()? {
        PairObjective::Referenced(objective) => {
            let reference = Frozen::new(&policy);
            let theirs = reference.log_probs(rows.tokens, rows.mask, Bigram::forward)?;
            let theirs = PolicyPair::from_concatenated(&theirs.sequence())?;
            objective.forward(pair.relative_to(theirs)?)
        }
        PairObjective::ReferenceFree(objective) => objective.forward(pair),
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
