//! Metrics: values, TRL's keys, ties and displacement, merging unequal batches.

use burn::tensor::DType;
use burn_preference::log_probs::WithStatistics;
use burn_preference::{
    BatchMetrics, BradleyTerryLossConfig, DpoLossConfig, DroLossConfig, KtoLossConfig, Metrics,
    NpoLossConfig, Objective, OrpoLossConfig, Pair, PlackettLuceLossConfig, Ranked, RewardPair,
    RewardRankingLossConfig, RrhfLossConfig, Scored, TokenLogProbs, Unpaired, WithBaseline,
    WithMargin, WithValue,
};
use proptest::prelude::*;

use crate::objectives::any_pairs;
use crate::support::{
    Lists, Pairs, UnpairedCompletions, bools, cases, error, f64s, floats, ints, leaf, sequence,
};

fn of(pairs: &Pairs) -> Metrics {
    let batch = pairs.referenced(leaf(&pairs.chosen), leaf(&pairs.rejected));
    let output = DpoLossConfig::new().init().forward(batch.clone());
    BatchMetrics::observe(&batch, &output).read().unwrap()
}

fn four() -> Pairs {
    Pairs {
        // Log-ratios: +2 / −1, −1 / −4 (fell, still ahead), 0 / 0 (tie), −3 / 1 (behind).
        chosen: vec![-8.0, -11.0, -10.0, -13.0],
        rejected: vec![-11.0, -14.0, -10.0, -9.0],
        ref_chosen: vec![-10.0; 4],
        ref_rejected: vec![-10.0; 4],
        chosen_len: vec![3; 4],
        rejected_len: vec![3; 4],
    }
}

fn assert_metric(metrics: &Metrics, key: &str, expected: f64) {
    let ours = metrics
        .get(key)
        .unwrap_or_else(|| panic!("{key} is missing"));
    assert!(
        error(ours, expected) < 1e-6,
        "{key}: {ours} instead of {expected}"
    );
}

#[test]
fn pairs() {
    let metrics = of(&four());
    assert_metric(&metrics, "rewards/chosen", 0.1 * -2.0 / 4.0);
    assert_metric(&metrics, "rewards/rejected", 0.1 * -4.0 / 4.0);
    assert_metric(&metrics, "rewards/margins", 0.1 * 2.0 / 4.0);
    assert_metric(&metrics, "rewards/accuracies", 0.5);
    assert_metric(&metrics, "rewards/ties", 0.25);
    assert_metric(&metrics, "displacement", 0.5);
    assert_metric(&metrics, "logps/chosen", -10.5);
    assert_metric(&metrics, "logps/rejected", -11.0);
    assert_metric(&metrics, "mean_logps/chosen", -3.5);
    assert_metric(&metrics, "length_mismatches", 0.0);
    let sp = |h: f64| (1.0 + (-h).exp()).ln();
    assert_metric(&metrics, "loss", (2.0 * sp(0.3) + sp(0.0) + sp(-0.4)) / 4.0);
    let keys: Vec<&str> = metrics.iter().map(|(key, _)| key).collect();
    assert_eq!(
        keys,
        [
            "displacement",
            "length_mismatches",
            "logps/chosen",
            "logps/rejected",
            "loss",
            "mean_logps/chosen",
            "mean_logps/rejected",
            "rewards/accuracies",
            "rewards/chosen",
            "rewards/margins",
            "rewards/rejected",
            "rewards/ties",
        ]
    );
    assert_eq!(metrics.count("loss"), 4.0);

    let pairs = four();
    let batch = pairs.referenced(f64s(&pairs.chosen), f64s(&pairs.rejected));
    let batch = WithMargin::new(batch, f64s(&[1.0; 4])).unwrap();
    let output = DpoLossConfig::new().init().forward(batch.clone());
    let metrics = BatchMetrics::observe(&batch, &output).read().unwrap();
    assert_metric(&metrics, "rewards/margins", 0.05);

    // A scale changes what is compared, not what fell.
    let pairs = four();
    let batch = pairs.referenced(f64s(&pairs.chosen), f64s(&pairs.rejected));
    let batch = batch.scaled_by(f64s(&[0.0; 4])).unwrap();
    let metrics =
        BatchMetrics::observe(&batch, &DpoLossConfig::new().init().forward(batch.clone()));
    let metrics = metrics.read().unwrap();
    assert_metric(&metrics, "rewards/margins", 0.0);
    assert_metric(&metrics, "displacement", 0.5);
}

#[test]
fn orpo_logs_odds_and_no_reference() {
    let pairs = Pairs {
        chosen: vec![-2.0 * std::f64::consts::LN_2],
        rejected: vec![-4.0 * std::f64::consts::LN_2],
        chosen_len: vec![2],
        rejected_len: vec![2],
        ..Pairs::default()
    };
    let batch = pairs.policy(f64s(&pairs.chosen), f64s(&pairs.rejected));
    let output = OrpoLossConfig::new().init().forward(batch.clone());
    let metrics = BatchMetrics::observe(&batch, &output)
        .with_log_odds(&batch)
        .read()
        .unwrap();
    // odds 1 against 1/3
    assert_metric(&metrics, "log_odds_chosen", 3_f64.ln());
    assert_metric(&metrics, "log_odds_ratio", 0.75_f64.ln());
    assert_metric(&metrics, "rewards/chosen", -0.1 * std::f64::consts::LN_2);
    assert_eq!(metrics.get("displacement"), None);
}

#[test]
fn unpaired() {
    let unpaired = |desirable: &[bool]| {
        let batch = UnpairedCompletions {
            policy: vec![-4.0, -9.0, -1.0][..desirable.len()].to_vec(),
            reference: vec![-5.0; desirable.len()],
            desirable: desirable.to_vec(),
            baseline: 0.5,
        };
        let policy = f64s(&batch.policy);
        let batch = batch.batch(policy);
        let output = KtoLossConfig::new().init().forward(batch.clone());
        BatchMetrics::observe(&batch, &output).read().unwrap()
    };
    let metrics = unpaired(&[true, false, true]);
    assert_metric(&metrics, "rewards/chosen", 0.25);
    assert_metric(&metrics, "rewards/rejected", -0.4);
    assert_metric(&metrics, "rewards/margins", 0.65);
    assert_metric(&metrics, "logps/chosen", -2.5);
    assert_metric(&metrics, "logps/rejected", -9.0);
    assert_metric(&metrics, "kl", 0.5);
    assert!(metrics.iter().any(|(key, _)| key == "rewards/margins"));

    let mut one_sided = unpaired(&[true]);
    assert_eq!(one_sided.get("rewards/rejected"), None);
    assert_eq!(one_sided.get("rewards/margins"), None);
    one_sided.merge(&unpaired(&[false, false]));
    assert_metric(&one_sided, "rewards/margins", 0.1 - (0.1 - 0.4) / 2.0);
}

#[test]
fn lists() {
    let list = Lists {
        candidates: 3,
        references: vec![],
        sums: vec![-1.0, -2.0, -3.0, -2.0, -2.0, 0.0, 0.0, 0.0, 0.0],
        lengths: vec![1; 9],
        scores: vec![2.0, 1.0, 3.0, 0.0, 1.0, 9.0, 0.0, 0.0, 0.0],
        present: vec![true, true, true, true, true, false, false, false, false],
    };
    let batch = list.batch(f64s(&list.sums));
    let output = RrhfLossConfig::new().init().forward(batch.clone());
    let metrics = BatchMetrics::observe(&batch, &output).read().unwrap();
    // Ordered pairs: 1<0 right, 0<2 wrong, 1<2 wrong; the second list is one tie.
    assert_metric(&metrics, "rewards/accuracies", 0.25);
    assert_metric(&metrics, "rewards/ties", 0.25);
    assert_eq!(metrics.count("rewards/ties"), 4.0);
    assert_metric(&metrics, "rewards/top1", 0.0);
    assert_metric(&metrics, "rewards/top1_ties", 0.5);
    assert_metric(&metrics, "logps/chosen", -2.5);
    assert_eq!(metrics.count("rewards/top1"), 2.0);
}

/// Several best candidates: their order means nothing, and a list of equal scores has none.
#[test]
fn lists_with_several_best_candidates() {
    let list = Lists {
        candidates: 3,
        references: vec![],
        sums: vec![-3.0, -1.0, -2.0, -3.0, -2.0, -2.0, -1.0, -2.0, -3.0],
        lengths: vec![1; 9],
        scores: vec![1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0],
        present: vec![true; 9],
    };
    let batch = list.batch(f64s(&list.sums));
    let output = RrhfLossConfig::new().init().forward(batch.clone());
    let metrics = BatchMetrics::observe(&batch, &output).read().unwrap();
    // −1 is ahead of the worse −2; then a best −2 and a worse one.
    assert_metric(&metrics, "rewards/top1", 0.5);
    assert_metric(&metrics, "rewards/top1_ties", 0.5);
    assert_eq!(metrics.count("rewards/top1"), 2.0);
    assert_metric(&metrics, "rewards/accuracies", 0.25);
    assert_metric(&metrics, "rewards/ties", 0.25);
    // The means of the best: −2, −2.5, −2.
    for key in ["rewards/chosen", "logps/chosen", "mean_logps/chosen"] {
        assert_metric(&metrics, key, -6.5 / 3.0);
    }
}

/// At policy = reference nothing is learned, and no metric looks as if.
#[test]
fn lists_at_the_reference_are_all_ties() {
    let list = Lists {
        candidates: 3,
        references: vec![-1.0, -2.0, -3.0, -2.0, -2.5, -4.0, -1.0, 0.0, 0.0],
        sums: vec![-1.0, -2.0, -3.0, -2.0, -2.5, -4.0, -1.0, 0.0, 0.0],
        lengths: vec![1; 9],
        scores: vec![2.0, 1.0, 3.0, 0.0, 1.0, 0.5, 1.0, 0.0, 0.0],
        present: vec![true, true, true, true, true, true, true, false, false],
    };
    let observe = |sums: &[f64]| {
        let batch = list.referenced(f64s(sums));
        let output = PlackettLuceLossConfig::new().init().forward(batch.clone());
        BatchMetrics::observe(&batch, &output).read().unwrap()
    };
    let metrics = observe(&list.sums);
    assert_metric(&metrics, "rewards/accuracies", 0.0);
    assert_metric(&metrics, "rewards/ties", 1.0);
    assert_metric(&metrics, "rewards/top1", 0.0);
    assert_metric(&metrics, "rewards/top1_ties", 1.0);
    // The list of one orders nothing.
    assert_eq!(metrics.count("rewards/top1"), 2.0);
    assert_metric(&metrics, "length_mismatches", 0.0);
    assert_eq!(metrics.count("length_mismatches"), 7.0);

    let mut learned = list.sums.clone();
    learned[2] += 1.0; // the best of the first list
    learned[3] += 1.0; // the worst of the second
    let metrics = observe(&learned);
    assert_metric(&metrics, "rewards/top1", 0.5);
    assert_metric(&metrics, "rewards/top1_ties", 0.0);
}

/// A reference that counts other tokens than the policy is seen.
#[test]
fn lengths_that_differ_are_counted() {
    let mut pairs = four();
    let policy = pairs.policy(f64s(&pairs.chosen), f64s(&pairs.rejected));
    pairs.chosen_len[2] = 4;
    let reference = pairs.policy(f64s(&pairs.ref_chosen), f64s(&pairs.ref_rejected));
    let batch = policy.relative_to(reference).unwrap();
    let output = DpoLossConfig::new().init().forward(batch.clone());
    let metrics = BatchMetrics::observe(&batch, &output).read().unwrap();
    assert_metric(&metrics, "length_mismatches", 1.0 / 8.0);
}

#[test]
fn completions_to_unlearn() {
    let lengths = [4, 4];
    let relative = sequence(f64s(&[-10.0, -6.0]), &lengths);
    let relative = relative
        .relative_to(sequence(f64s(&[-12.0, -6.0]), &lengths))
        .unwrap();
    let output = NpoLossConfig::new().init().forward(relative.clone());
    let metrics = BatchMetrics::observe(&relative, &output).read().unwrap();
    assert_metric(&metrics, "rewards/rejected", 0.1);
    assert_metric(&metrics, "logps/rejected", -8.0);
    assert_eq!(metrics.get("rewards/chosen"), None);
}

#[test]
fn your_own_values() {
    let metrics = BatchMetrics::default()
        .with("mine", f64s(&[1.0, 4.0]))
        .read()
        .unwrap();
    assert_metric(&metrics, "mine", 2.5);
    // Keys of a program, and counts that do not fit.
    let key = |i: usize| format!("layer{i}/norm");
    let metrics = BatchMetrics::default().with(key(3), f64s(&[1.0]));
    assert_metric(&metrics.read().unwrap(), "layer3/norm", 1.0);
    let error = BatchMetrics::default().with_counted("mine", f64s(&[1.0]), bools(&[true; 2]));
    assert_eq!(error.unwrap_err().name(), "counted");
    assert_eq!(BatchMetrics::default().read().unwrap(), Metrics::default());
}

/// Two micro-batches and one read, whatever their number types; a key that comes twice adds up.
#[test]
fn metrics_merge_on_the_device() {
    let wide = BatchMetrics::default().with("mine", f64s(&[1.0, 1.0 + 1e-12]));
    let narrow = BatchMetrics::default().with("mine", floats(&[4.0], DType::F32));
    let metrics = wide.merge(narrow).with("mine", f64s(&[2.0]));
    let metrics = metrics.read().unwrap();
    assert_eq!(metrics.count("mine"), 4.0);
    assert!((metrics.get("mine").unwrap() - (8.0 + 1e-12) / 4.0).abs() < 1e-15);

    // A policy in f64 beside a baseline in f32, as a device without f64 would give it.
    let pairs = four();
    let relative = pairs
        .referenced(f64s(&pairs.chosen), f64s(&pairs.rejected))
        .chosen;
    let batch = Unpaired::new(relative, bools(&[true, false, true, true])).unwrap();
    let batch = WithBaseline::new(batch, floats(&[0.25], DType::F32)).unwrap();
    let output = KtoLossConfig::new().init().forward(batch.clone());
    let metrics = BatchMetrics::observe(&batch, &output).read().unwrap();
    assert_metric(&metrics, "kl", 0.25);
    let keys: Vec<&str> = metrics.iter().map(|(key, _)| key).collect();
    assert!(keys.contains(&"rewards/margins"), "{keys:?}");
    let json: serde_json::Value = serde_json::to_value(&metrics).unwrap();
    assert!(
        error(
            json["rewards/margins"].as_f64().unwrap(),
            metrics.get("rewards/margins").unwrap()
        ) < 1e-15
    );
    assert_eq!(json.as_object().unwrap().len(), keys.len());
    assert_eq!(metrics.to_string().lines().count(), keys.len());
    assert_eq!(
        format!("{metrics:.1}").lines().next(),
        Some("kl                       0.2")
    );
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn merging_parts_is_observing_the_whole(pairs in any_pairs(), cut in 0_usize..7) {
        let cut = cut % pairs.len().max(1);
        if cut == 0 {
            return Ok(());
        }
        let mut parts = of(&pairs.map(|v| v[..cut].to_vec(), |v| v[..cut].to_vec()));
        parts.merge(&of(&pairs.map(|v| v[cut..].to_vec(), |v| v[cut..].to_vec())));
        let whole = of(&pairs);
        prop_assert_eq!(parts.iter().count(), whole.iter().count());
        for ((key, ours), (_, expected)) in parts.iter().zip(whole.iter()) {
            prop_assert!(error(ours, expected) < 1e-11, "{key}");
        }
    }
}

#[test]
fn values_keep_their_precision() {
    let pairs = four();
    let output = pairs.run(&DpoLossConfig::new().init(), DType::F64);
    let mean = output.losses.iter().sum::<f64>() / 4.0;
    assert!(error(of(&pairs).get("loss").unwrap(), mean) < 1e-14);
}

#[test]
fn statistics_of_tokens() {
    // Two counted columns: words of equal probability, then a certain one that is not the token.
    let logits = f64s(&[1.0, 1.0, 1000.0, 0.0, 9.0, 9.0]).reshape([1, 3, 2]);
    let tokens = ints(&[0, 0, 1]).reshape([1, 3]);
    let mask = bools(&[false, true, true]).reshape([1, 3]);
    let (_, statistics) = TokenLogProbs::from_output(WithStatistics(logits), tokens, mask).unwrap();
    let metrics = BatchMetrics::default()
        .with_statistics(&statistics)
        .read()
        .unwrap();
    assert_metric(&metrics, "entropy", std::f64::consts::LN_2 / 2.0);
    assert_metric(&metrics, "mean_token_accuracy", 0.5);
    assert_metric(&metrics, "mean_logits", 250.5);
    assert_eq!(metrics.count("entropy"), 2.0);
}

/// Each side by itself, and the two keys that TRL has: entropy of both, accuracy of the chosen.
#[test]
fn statistics_of_pairs() {
    // A column each: even odds and a hit, then certainty and a miss.
    let logits = f64s(&[1.0, 1.0, 0.0, 0.0, 1000.0, 0.0, 0.0, 0.0]).reshape([2, 2, 2]);
    let tokens = ints(&[0, 0, 0, 1]).reshape([2, 2]);
    let mask = bools(&[false, true, false, true]).reshape([2, 2]);
    let (_, statistics) = TokenLogProbs::from_output(WithStatistics(logits), tokens, mask).unwrap();
    let statistics = Pair::from_concatenated(&statistics).unwrap();
    let metrics = BatchMetrics::default().with_pair_statistics(&statistics);
    let metrics = metrics.read().unwrap();
    let ln_2 = std::f64::consts::LN_2;
    for (key, expected) in [
        ("entropy", ln_2 / 2.0),
        ("entropy/chosen", ln_2),
        ("entropy/rejected", 0.0),
        ("mean_token_accuracy", 1.0),
        ("mean_token_accuracy/chosen", 1.0),
        ("mean_token_accuracy/rejected", 0.0),
        ("logits/chosen", 1.0),
        ("logits/rejected", 500.0),
    ] {
        assert_metric(&metrics, key, expected);
    }
}

/// What a reward model says has no log-probs: the keys are those of its rewards alone.
#[test]
fn rewards_of_a_model() {
    let says = RewardPair::new(f64s(&[2.0, 1.0, 0.5]), f64s(&[0.5, 1.0, 3.0])).unwrap();
    let output = BradleyTerryLossConfig::new().init().forward(says.clone());
    let metrics = BatchMetrics::observe(&says, &output).read().unwrap();
    assert_metric(&metrics, "rewards/chosen", 3.5 / 3.0);
    assert_metric(&metrics, "rewards/rejected", 1.5);
    assert_metric(&metrics, "rewards/margins", -1.0 / 3.0);
    assert_metric(&metrics, "rewards/accuracies", 1.0 / 3.0);
    assert_metric(&metrics, "rewards/ties", 1.0 / 3.0);
    assert_eq!(metrics.iter().count(), 6, "and the loss: {metrics}");

    // Scores say that the second is best: it is behind the first, and ahead of the third.
    let says = f64s(&[1.0, 0.0, -1.0, 9.0]).reshape([1, 4]);
    let scores = f64s(&[1.0, 2.0, 0.0, 5.0]).reshape([1, 4]);
    let present = bools(&[true, true, true, false]).reshape([1, 4]);
    let lists = Ranked::new(says, scores, present).unwrap();
    let output = RewardRankingLossConfig::new().init().forward(lists.clone());
    let metrics = BatchMetrics::observe(&lists, &output).read().unwrap();
    assert_metric(&metrics, "rewards/accuracies", 2.0 / 3.0);
    assert_metric(&metrics, "rewards/top1", 0.0);
    assert_metric(&metrics, "rewards/chosen", 0.0);
    assert_eq!(metrics.get("logps/chosen"), None);
}

/// Neither chosen nor rejected: keys without a side.
#[test]
fn scored_completions() {
    let relative = sequence(f64s(&[-4.0, -9.0]), &[2, 3]);
    let relative = relative.relative_to(sequence(f64s(&[-5.0, -5.0]), &[2, 3]));
    let batch = Scored::new(relative.unwrap(), f64s(&[1.0, 0.0])).unwrap();
    let batch = WithValue::new(batch, f64s(&[0.5, 0.5])).unwrap();
    let output = DroLossConfig::new()
        .with_tau(0.5)
        .init()
        .forward(batch.clone());
    let metrics = BatchMetrics::observe(&batch, &output).read().unwrap();
    assert_metric(&metrics, "rewards", 0.5 * (1.0 - 4.0) / 2.0);
    assert_metric(&metrics, "scores", 0.5);
    assert_metric(&metrics, "logps", -6.5);
    assert_metric(&metrics, "mean_logps", -2.5);
    assert_metric(&metrics, "loss", 0.5 * (0.0 + 1.5 * 1.5) / 2.0);
    assert_eq!(metrics.get("rewards/rejected"), None);
}
