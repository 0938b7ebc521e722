//! Metrics: values, TRL's keys, ties and displacement, merging unequal batches.

use burn::tensor::DType;
use burn_preference::{
    BatchMetrics, DpoLossConfig, KtoLossConfig, Metrics, NpoLossConfig, Objective, OrpoLossConfig,
    RrhfLossConfig, TokenLogProbs, WithMargin,
};
use proptest::prelude::*;

use crate::objectives::any_pairs;
use crate::support::{Labelled, Lists, Pairs, bools, cases, error, f64s, ints, leaf, sequence};

fn of(pairs: &Pairs) -> Metrics {
    let batch = pairs.referenced(leaf(&pairs.chosen), leaf(&pairs.rejected));
    let output = DpoLossConfig::new().init().forward(batch.clone());
    BatchMetrics::observe(&batch, &output).read()
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
    let sp = |h: f64| (1.0 + (-h).exp()).ln();
    assert_metric(&metrics, "loss", (2.0 * sp(0.3) + sp(0.0) + sp(-0.4)) / 4.0);
    let keys: Vec<&str> = metrics.iter().map(|(key, _)| key).collect();
    assert_eq!(
        keys,
        [
            "displacement",
            "logps/chosen",
            "logps/rejected",
            "loss",
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
    let metrics = BatchMetrics::observe(&batch, &output).read();
    assert_metric(&metrics, "rewards/margins", 0.05);
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
        .read();
    // odds 1 against 1/3
    assert_metric(&metrics, "log_odds_chosen", 3_f64.ln());
    assert_metric(&metrics, "log_odds_ratio", 0.75_f64.ln());
    assert_metric(&metrics, "rewards/chosen", -0.1 * std::f64::consts::LN_2);
    assert_eq!(metrics.get("displacement"), None);
}

#[test]
fn unpaired() {
    let labelled = |desirable: &[bool]| {
        let batch = Labelled {
            policy: vec![-4.0, -9.0, -1.0][..desirable.len()].to_vec(),
            reference: vec![-5.0; desirable.len()],
            desirable: desirable.to_vec(),
            baseline: 0.5,
        };
        let policy = f64s(&batch.policy);
        let batch = batch.batch(policy);
        let output = KtoLossConfig::new().init().forward(batch.clone());
        BatchMetrics::observe(&batch, &output).read()
    };
    let metrics = labelled(&[true, false, true]);
    assert_metric(&metrics, "rewards/chosen", 0.25);
    assert_metric(&metrics, "rewards/rejected", -0.4);
    assert_metric(&metrics, "rewards/margins", 0.65);
    assert_metric(&metrics, "logps/chosen", -2.5);
    assert_metric(&metrics, "logps/rejected", -9.0);
    assert_metric(&metrics, "kl", 0.5);
    assert!(metrics.iter().any(|(key, _)| key == "rewards/margins"));

    let mut one_sided = labelled(&[true]);
    assert_eq!(one_sided.get("rewards/rejected"), None);
    assert_eq!(one_sided.get("rewards/margins"), None);
    one_sided.merge(&labelled(&[false, false]));
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
    let metrics = BatchMetrics::observe(&batch, &output).read();
    // Ordered pairs: 1<0 right, 0<2 wrong, 1<2 wrong; the second list is one tie.
    assert_metric(&metrics, "rewards/accuracies", 0.25);
    assert_metric(&metrics, "rewards/ties", 0.25);
    assert_eq!(metrics.count("rewards/ties"), 4.0);
    assert_metric(&metrics, "rewards/top1", 0.5);
    assert_metric(&metrics, "logps/chosen", -2.5);
    assert_eq!(metrics.count("rewards/top1"), 2.0);
}

#[test]
fn completions_to_unlearn() {
    let lengths = [4, 4];
    let relative = sequence(f64s(&[-10.0, -6.0]), &lengths);
    let relative = relative
        .relative_to(sequence(f64s(&[-12.0, -6.0]), &lengths))
        .unwrap();
    let output = NpoLossConfig::new().init().forward(relative.clone());
    let metrics = BatchMetrics::observe(&relative, &output).read();
    assert_metric(&metrics, "rewards/rejected", 0.1);
    assert_metric(&metrics, "logps/rejected", -8.0);
    assert_eq!(metrics.get("rewards/chosen"), None);
}

#[test]
fn your_own_values() {
    let metrics = BatchMetrics::default()
        .with("mine", f64s(&[1.0, 4.0]))
        .read();
    assert_metric(&metrics, "mine", 2.5);
    assert_eq!(BatchMetrics::default().read(), Metrics::default());
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
    let tokens = ints(&[0, 1, 1]).reshape([1, 3]);
    let mask = bools(&[false, true, true]).reshape([1, 3]);
    let (_, statistics) = TokenLogProbs::from_logits_with_statistics(logits, tokens, mask).unwrap();
    let metrics = BatchMetrics::default().with_statistics(&statistics).read();
    assert_metric(&metrics, "entropy", std::f64::consts::LN_2 / 2.0);
    assert_metric(&metrics, "mean_token_accuracy", 0.5);
    assert_metric(&metrics, "mean_logits", 250.5);
    assert_eq!(metrics.count("entropy"), 2.0);
}
