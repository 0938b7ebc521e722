//! Reports at the end of a run: a table, answers, and its costs.

use burn_preference::Metrics;
use finetune::{Answering, Chat, Decoder, Failure, Prompt, Trained, say};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Prints seconds an example and peak memory.
pub(crate) fn print_costs(trained: &Trained) {
    if trained.examples > 0 {
        say!(
            "{:.2} s an example; peak memory {}",
            trained.seconds / trained.examples as f64,
            peak_memory()
        );
    }
}

/// Heads of columns with the metrics that stand there.
type Columns = &'static [(&'static str, &'static str)];

const OF_REWARDS: Columns = &[
    ("loss", "loss"),
    ("reward accuracy", "rewards/accuracies"),
    ("margin", "rewards/margins"),
    ("chosen", "logps/chosen"),
    ("rejected", "logps/rejected"),
];
const OF_TOKENS: Columns = &[
    ("loss", "loss"),
    ("token accuracy", "mean_token_accuracy"),
    ("entropy", "entropy"),
    ("perplexity", "perplexity"),
];

const OF_SAMPLES: Columns = &[
    ("loss", "loss"),
    ("π/μ", "ratio"),
    ("clipped", "clip_ratio/region_mean"),
    ("KL", "kl"),
    ("entropy", "entropy"),
];

/// Writes a row of held-out metrics for each model.
pub(crate) fn table(rows: &[(String, Metrics)]) -> String {
    let is_of_tokens = |(_, metrics): &(String, Metrics)| metrics.contains("perplexity");
    let is_of_samples = |(_, metrics): &(String, Metrics)| metrics.contains("ratio");
    let columns = if rows.iter().any(is_of_tokens) {
        OF_TOKENS
    } else if rows.iter().any(is_of_samples) {
        OF_SAMPLES
    } else {
        OF_REWARDS
    };
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let heads = columns.iter().map(|(head, _)| (*head).to_owned());
    let head = line([vec!["held out".to_owned()], heads.collect()].concat());
    let rule = format!("|{}\n", "---|".repeat(columns.len() + 1));
    let row = |(name, metrics): &(String, Metrics)| {
        let cell = |(_, key): &(_, &str)| match metrics.get(key) {
            Some(value) => format!("{value:.4}"),
            None => "–".to_owned(),
        };
        line([vec![name.clone()], columns.iter().map(cell).collect()].concat())
    };
    head + &rule + &rows.iter().map(row).collect::<String>()
}

/// Says what is wrong with the losses before and after the training, and of what was saved. `key` is
/// the metric that is a loss.
pub(crate) fn look_at_losses(rows: &[(String, Metrics)], key: &str, is_rounded: bool) {
    let losses: Vec<f64> = rows
        .iter()
        .filter_map(|(_, metrics)| metrics.get(key))
        .collect();
    let &[before, after, loaded] = losses.as_slice() else {
        return;
    };
    if after >= before {
        say!("look: the held-out loss has not fallen");
    } else if is_rounded && loaded - after > 0.1 * (before - after) {
        let lost = 100.0 * (loaded - after) / (before - after);
        say!(
            "look: {lost:.0}% of what the held-out loss has fallen is lost where the saved weights are \
             rounded; --save-dtype f32 keeps it"
        );
    }
}

/// Prints answers of two models to the same prompts.
pub(crate) fn print_answers(
    answering: &Answering<'_>,
    prompts: &[Prompt],
    models: [&Decoder; 2],
    seed: u64,
) -> Result<(), Failure> {
    let chat: &Chat = answering.chat;
    for prompt in prompts {
        if !answering.fits(prompt)? {
            say!("\nnot answered: a prompt that is longer than --max-length");
            continue;
        }
        for (i, (name, model)) in ["before", "after"].into_iter().zip(models).enumerate() {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            for answer in answering.answer(model, prompt, 1, &mut rng)? {
                if i == 0 {
                    say!("\n{}", chat.decode(answer.ids.prompt())?.trim());
                }
                say!("  {name}: {}", answer.text);
            }
        }
    }
    Ok(())
}

/// As Linux counts it.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or("unknown".to_owned(), |line| line.trim().to_owned())
}
