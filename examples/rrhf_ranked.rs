//! Ranked lists of different length: RRHF, without any reference model.
//!
//! ```text
//! cargo run --example rrhf_ranked
//! ```

mod toy;

use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Bool, Device, Tensor};
use burn_preference::{BatchMetrics, InvalidInput, Objective, Ranked, RrhfLossConfig};
use toy::{Bigram, Rows};

fn main() -> Result<(), InvalidInput> {
    let device = Device::default();
    let mut policy = Bigram::new(&device);

    // Three candidates for prompt 0, two for prompt 3; the last row is padding of the list.
    let rows = Rows::new(
        [
            [0, 1, 2, 7],
            [0, 3, 4, 5],
            [0, 6, 7, 7],
            [3, 5, 4, 7],
            [3, 2, 2, 2],
            [7, 7, 7, 7],
        ],
        &device,
    );
    let scores = Tensor::<2>::from_floats([[0.9, 0.2, 0.5], [1.0, 3.0, 0.0]], &device);
    let present = [[true, true, true], [true, true, false]];
    let present = Tensor::<2, Bool>::from_bool(present, &device);

    let rrhf = RrhfLossConfig::new().with_sft_weight(0.5).init();
    let mut optimizer = AdamWConfig::new().init();
    for step in 0..=20 {
        let candidates = policy.log_probs(&rows)?.split_candidates(3)?;
        let lists = Ranked::new(candidates, scores.clone(), present.clone())?;

        let output = rrhf.forward(lists.clone());
        let grads = GradientsParams::from_grads(output.mean().backward(), &policy);
        policy = optimizer.step(0.02, policy, grads);

        if step % 5 == 0 {
            let metrics = BatchMetrics::observe(&lists, &output).read();
            let keys = ["loss", "rewards/accuracies", "rewards/top1"];
            let [loss, ordered, top] = keys.map(|key| metrics.get(key).unwrap());
            println!(
                "step {step:2}  loss {loss:.4}  pairs in order {ordered:.2}  best first {top:.2}"
            );
        }
    }
    Ok(())
}
