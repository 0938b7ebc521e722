//! Reports at the end of a run: a table, answers, and its costs.

use burn_preference::Metrics;
use finetune::{Answering, Chat, Decoder, Failure, Prompt, Trained};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Prints seconds an example and peak memory.
pub(crate) fn print_costs(trained: &Trained) {
    if trained.examples > 0 {
        println!(
            "{:.2} s an example; peak memory {}",
            trained.seconds / trained.examples as f64,
            peak_memory()
        );
    }
}

/// Writes a row of held-out metrics for each model.
pub(crate) fn table(rows: &[(String, Metrics)]) -> String {
    let head = "| held out | loss | reward accuracy | margin | chosen | rejected |\n\
                |---|---|---|---|---|---|\n";
    let rows = rows.iter().map(|(name, metrics)| row(name, metrics));
    head.to_owned() + &rows.collect::<String>()
}

fn row(name: &str, metrics: &Metrics) -> String {
    let get = |key| {
        metrics
            .get(key)
            .map_or("–".to_owned(), |value| format!("{value:.4}"))
    };
    format!(
        "| {name} | {} | {} | {} | {} | {} |\n",
        get("loss"),
        get("rewards/accuracies"),
        get("rewards/margins"),
        get("logps/chosen"),
        get("logps/rejected"),
    )
}

/// Says what is wrong with the losses before and after the training, and of what was saved.
pub(crate) fn look_at_losses(rows: &[(String, Metrics)], is_rounded: bool) {
    let losses: Vec<f64> = rows
        .iter()
        .filter_map(|(_, metrics)| metrics.get("loss"))
        .collect();
    let &[before, after, loaded] = losses.as_slice() else {
        return;
    };
    if after >= before {
        println!("look: the held-out loss has not fallen");
    } else if is_rounded && loaded - after > 0.1 * (before - after) {
        let lost = 100.0 * (loaded - after) / (before - after);
        println!(
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
            println!("\nnot answered: a prompt that is longer than --max-length");
            continue;
        }
        for (i, (name, model)) in ["before", "after"].into_iter().zip(models).enumerate() {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            for answer in answering.answer(model, prompt, 1, &mut rng)? {
                if i == 0 {
                    println!("\n{}", chat.decode(answer.ids.prompt())?.trim());
                }
                println!("  {name}: {}", answer.text);
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
