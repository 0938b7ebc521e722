//! Feature `train`: metrics as burn-train counts them. The examples run whole trainings.

use burn::data::dataloader::Progress;
use burn::tensor::{Bool, Tensor};
use burn::train::ItemLazy;
use burn::train::metric::{
    Adaptor, LossInput, LossMetric, Metric, MetricAttributes, MetricMetadata, Numeric, NumericEntry,
};
use burn_preference::training::burn_train::{PreferenceItem, StatMetric, Stats};
use burn_preference::{
    BatchMetrics, DpoLossConfig, KtoLossConfig, Objective, PolicyPair, SequenceLogProbs, Unpaired,
    WithBaseline,
};

use crate::support::{device, f64s};

fn log_probs(sums: &[f32]) -> SequenceLogProbs {
    SequenceLogProbs::from_values(sums, &vec![1; sums.len()], &device()).unwrap()
}

/// Log-ratios of chosen and rejected completions, β = 1.
fn pairs(chosen: &[f32], rejected: &[f32]) -> PreferenceItem {
    let zero = || log_probs(&vec![0.0; chosen.len()]);
    let reference = PolicyPair::new(zero(), zero()).unwrap();
    let policy = PolicyPair::new(log_probs(chosen), log_probs(rejected)).unwrap();
    let pair = policy.relative_to(reference).unwrap();
    let output = DpoLossConfig::new()
        .with_beta(1.0)
        .init()
        .forward(pair.clone());
    PreferenceItem::new(&pair, &output).sync().unwrap()
}

fn meta() -> MetricMetadata {
    MetricMetadata {
        progress: Progress::new(1, 1, None),
        iteration: Some(1),
        lr: None,
    }
}

fn observe(metric: &mut StatMetric, item: &PreferenceItem) -> String {
    let stats: Stats = item.adapt();
    metric.update(&stats, &meta()).unwrap().serialized
}

#[test]
fn an_epoch_is_the_mean_of_its_pairs() {
    let large = pairs(&[2.0, 1.0, -1.0, 4.0], &[1.0, 2.0, -3.0, 0.0]);
    let small = pairs(&[0.0], &[1.0]);
    let mut accuracy = StatMetric::new("rewards/accuracies");
    assert_eq!(accuracy.name().as_str(), "rewards.accuracies");
    assert_eq!(observe(&mut accuracy, &large), "0.75,4");
    assert_eq!(observe(&mut accuracy, &small), "0,1");
    assert_eq!(accuracy.value().unwrap().current(), 0.0);
    // 3 of 5, where the mean of the means is 0.375.
    let running = accuracy.running_value().unwrap();
    assert!((running.current() - 0.6).abs() < 1e-12);
    assert!(matches!(running, NumericEntry::Aggregated { count: 5, .. }));
    let last = accuracy.compute().unwrap();
    assert_eq!(last.serialized, "0.6,final");
    assert_eq!(last.formatted, "epoch 0.6000 - batch 0.0000");

    accuracy.clear();
    assert!(accuracy.final_value().current().is_nan());
    observe(&mut accuracy, &small);
    assert_eq!(accuracy.final_value().current(), 0.0);
}

#[test]
fn all_metrics_of_an_item_read_it_once() {
    let item = pairs(&[1.0], &[0.0]);
    let [mut margins, mut loss] = ["rewards/margins", "loss"].map(StatMetric::new);
    assert_eq!(observe(&mut margins, &item), "1,1");
    observe(&mut loss, &item);
    let softplus = (-1.0_f64).exp().ln_1p();
    assert!((loss.value().unwrap().current() - softplus).abs() < 1e-6);

    let mut burns = LossMetric::new();
    let input: LossInput = item.adapt();
    burns.update(&input, &meta()).unwrap();
    assert!((burns.value().unwrap().current() - softplus).abs() < 1e-6);
}

#[test]
fn margins_of_unpaired_completions_are_those_of_the_epoch() {
    let unpaired = |ratios: &[f32], desirable: &[bool]| {
        let zero = log_probs(&vec![0.0; ratios.len()]);
        let ratios = log_probs(ratios).relative_to(zero).unwrap();
        let desirable = Tensor::<1, Bool>::from_data(desirable, &device());
        let batch = Unpaired::new(ratios, desirable).unwrap();
        let baseline = Tensor::<1>::from_data([0.0], &device());
        let batch = WithBaseline::new(batch, baseline).unwrap();
        let output = KtoLossConfig::new()
            .with_beta(1.0)
            .init()
            .forward(batch.clone());
        PreferenceItem::new(&batch, &output)
    };
    let mut margins = StatMetric::new("rewards/margins");
    // Nothing undesirable: no margin of this batch.
    assert_eq!(
        observe(&mut margins, &unpaired(&[3.0, 5.0], &[true, true])),
        "NaN,0"
    );
    observe(&mut margins, &unpaired(&[1.0, -2.0], &[true, false]));
    // (3 + 5 + 1)/3 + 2, of four completions.
    let epoch = margins.running_value().unwrap();
    assert!((epoch.current() - 5.0).abs() < 1e-6);
    assert!(matches!(epoch, NumericEntry::Aggregated { count: 4, .. }));
}

#[test]
fn which_way_is_better() {
    let higher = |metric: &StatMetric| match metric.attributes() {
        MetricAttributes::Numeric(attributes) => attributes.higher_is_better,
        MetricAttributes::None => unreachable!(),
    };
    for (key, expected) in [
        ("rewards/accuracies", true),
        ("rewards/chosen", true),
        ("rewards/rejected", false),
        ("loss", false),
        ("kl", false),
        ("displacement", false),
    ] {
        assert_eq!(higher(&StatMetric::new(key)), expected, "{key}");
    }
    assert!(!higher(
        &StatMetric::new("entropy").with_higher_is_better(false)
    ));
}

#[test]
fn metrics_of_your_own() {
    let metrics = BatchMetrics::default().with("length", f64s(&[3.0, 5.0]));
    let item = PreferenceItem::with_metrics(f64s(&[0.1, 0.3]), metrics);
    let mut length = StatMetric::new("length");
    assert_eq!(observe(&mut length, &item), "4,2");
}

#[test]
fn a_key_that_is_not_there() {
    let mut metric = StatMetric::new("rewards/acuracies");
    let item: Stats = pairs(&[1.0], &[0.0]).adapt();
    let error = metric.update(&item, &meta()).unwrap_err().to_string();
    let expected = "no metric `rewards/acuracies`; there is [\"displacement\"";
    assert!(error.contains(expected), "{error}");
}
