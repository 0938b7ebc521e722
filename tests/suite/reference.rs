//! The frozen reference: nothing trains, saves, counts, unfreezes or copies it.

use burn::module::{Lora, Module, QLora, Quantizer};
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamWConfig, GradientsParams, SgdConfig};
use burn::tensor::quantization::{Calibration, QuantValue};
use burn::tensor::{Device, Tensor};
use burn_preference::tokens::{Padding, Sequence, TokenBatch};
use burn_preference::{
    DpoLossConfig, Frozen, LmHead, Objective, Pair, ReferenceSchedule, SequenceLogProbs,
};

use crate::support::bigram::Bigram;
use crate::support::{ZipEqual, assert_close, device, elsewhere, to_vec};

const VOCAB: usize = 7;

/// With dropout, which a reference must not have.
fn bigram(device: &Device) -> Bigram {
    Bigram::new([VOCAB, 5], 0, device).with_dropout(0.5)
}

#[derive(Module, Debug)]
struct Preference {
    // First on purpose: an optimiser that visits it would find it first.
    reference: Frozen<Bigram>,
    policy: Bigram,
}

impl Preference {
    fn new() -> Self {
        let policy = bigram(&device().autodiff());
        Self {
            reference: Frozen::new(&policy),
            policy,
        }
    }

    fn loss(&self) -> Tensor<1> {
        let ours = batch().log_probs(&self.policy, Bigram::logits).unwrap();
        let relative = ours.relative_to(reference_log_probs(&self.reference));
        let pair = Pair::from_concatenated(&relative.unwrap()).unwrap();
        DpoLossConfig::new().init().forward(pair).mean()
    }
}

fn batch() -> TokenBatch {
    let rows = [[0, 1, 2, 3], [4, 5, 6, 0], [0, 6, 5, 4], [4, 3, 2, 1]];
    let rows = rows.map(|row: [u32; 4]| Sequence::new(&row[..2], &row[2..]));
    TokenBatch::new(rows.to_vec(), Padding::new(0), &device()).unwrap()
}

fn reference_log_probs(reference: &Frozen<Bigram>) -> SequenceLogProbs {
    batch().reference(reference, Bigram::logits).unwrap()
}

fn numbers(reference: &Frozen<Bigram>) -> Vec<f64> {
    to_vec(reference_log_probs(reference).sum())
}

fn weights(model: &Bigram) -> Vec<f64> {
    to_vec(model.embedding.weight.val())
}

#[test]
fn training_moves_the_policy_and_not_the_reference() {
    let mut model = Preference::new();
    let (before, start) = (numbers(&model.reference), weights(&model.policy));
    assert_eq!(start, weights(model.reference.model()));
    let mut optimizer = AdamWConfig::new().init();
    for _ in 0..10 {
        let grads = GradientsParams::from_grads(model.loss().backward(), &model);
        assert_eq!(
            grads.len(),
            3,
            "embedding, head weight and head bias of the policy"
        );
        model = optimizer.step(0.1, model, grads);
    }
    assert_eq!(numbers(&model.reference), before, "bit by bit");
    assert_eq!(weights(model.reference.model()), start);
    assert_ne!(
        weights(&model.policy),
        start,
        "a derived {{reference, policy}} trains the policy"
    );
    let policy = model.policy.valid();
    assert!(to_vec(Preference { policy, ..model }.loss())[0] < 0.6);
}

#[test]
fn a_plain_copy_would_be_trained() {
    // Why `Frozen` exists: clones keep their parameter ids, so the policy's gradient reaches both.
    #[derive(Module, Debug)]
    struct Trap {
        reference: Linear,
        policy: Linear,
    }
    let policy = LinearConfig::new(2, 2).init(&device().autodiff());
    let trap = Trap {
        reference: policy.clone(),
        policy,
    };
    let before = to_vec(trap.reference.weight.val());
    let x = Tensor::<2>::ones([1, 2], &device());
    let grads = trap.policy.forward(x).sum().backward();
    let grads = GradientsParams::from_grads(grads, &trap.policy);
    let trap = SgdConfig::new().init().step(0.1, trap, grads);
    assert_ne!(to_vec(trap.reference.weight.val()), before);
}

#[test]
fn it_is_not_counted_saved_unfrozen_or_trained() {
    let model = Preference::new();
    assert_eq!(model.num_params(), model.policy.num_params());
    assert_eq!(model.clone().into_record().len(), 3);

    let model = model.unfreeze().train();
    let reference = model.reference.model();
    assert!(!reference.embedding.weight.val().is_autodiff());
    assert!(!reference.head.weight.val().is_require_grad());
    let again = numbers(&model.reference);
    assert_eq!(
        again,
        numbers(&model.reference),
        "dropout is off, before and after train()"
    );
    assert!(model.policy.embedding.weight.val().is_require_grad());
    assert_eq!(
        format!("{model}").matches("dropout").count(),
        2,
        "it is displayed, though"
    );
}

#[test]
fn it_cannot_build_a_graph() {
    let model = Preference::new();
    let mut batch = batch();
    batch.ids = batch.ids.autodiff();
    batch.completion_mask = batch.completion_mask.tensor().autodiff().into();
    let policy = &model.policy;
    // Even a closure that computes with the policy gives back plain numbers.
    let log_probs = batch.reference(&model.reference, |m, t| {
        m.logits(t.clone()) + policy.logits(t.autodiff())
    });
    assert!(!log_probs.unwrap().sum().is_autodiff());
    assert!(!reference_log_probs(&model.reference).sum().is_autodiff());
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let step = |model: Preference, optimizer: &mut burn::optim::ModuleOptimizer| {
        // Dropout would draw other numbers: this test is about weights.
        let model = Preference {
            policy: model.policy.with_dropout(0.0),
            ..model
        };
        let grads = GradientsParams::from_grads(model.loss().backward(), &model);
        optimizer.step(0.05, model, grads)
    };
    let mut optimizer = AdamWConfig::new().init();
    let base = Preference::new();
    let one = step(base.clone(), &mut optimizer);
    let (record, state) = (one.clone().into_record(), optimizer.to_record());
    let two = step(one, &mut optimizer);

    let mut optimizer = AdamWConfig::new().init().load_record(state);
    // The reference comes from the weights that training started from, not from the checkpoint.
    let resumed = Preference::new();
    let before = numbers(&resumed.reference);
    let resumed = resumed.load_record(record);
    assert_eq!(numbers(&resumed.reference), before);
    let resumed = step(resumed, &mut optimizer);
    assert_eq!(weights(&resumed.policy), weights(&two.policy));
    assert_eq!(numbers(&resumed.reference), numbers(&two.reference));
}

#[test]
fn a_lora_reference_shares_the_base_weights() {
    let base = bigram(&device().autodiff());
    let reference = Frozen::new(&base);
    let policy = base.apply_lora(Lora::new(2, 4.0));
    // A tensor may be written in place only if nobody else holds its storage; NdArray never says
    // so, and could not fail here.
    let alone = |policy: Bigram| policy.head.weight.consume().1.inner().can_mut();
    let unshared = bigram(&device().autodiff()).apply_lora(Lora::new(2, 4.0));
    assert!(alone(unshared) || device() != Device::flex());
    let shared = bigram(&device().autodiff());
    let holder = Frozen::new(&shared);
    assert!(!alone(shared.apply_lora(Lora::new(2, 4.0))));
    drop(holder);

    let mut optimizer = SgdConfig::new().init();
    let model = Preference { reference, policy };
    let before = numbers(&model.reference);
    let start = to_vec(model.policy.head.weight.val());
    let base = |m: &Bigram| to_vec(m.head.weight.base());
    let base_before = base(&model.policy);
    let mut model = model;
    for _ in 0..2 {
        let grads = GradientsParams::from_grads(model.loss().backward(), &model);
        model = optimizer.step(0.5, model, grads);
    }
    assert_ne!(
        to_vec(model.policy.head.weight.val()),
        start,
        "the adapters train"
    );
    assert_eq!(base(&model.policy), base_before, "the base does not");
    assert_eq!(base(model.reference.model()), base_before);
    assert_eq!(numbers(&model.reference), before);
}

fn trained(policy: Bigram) -> Bigram {
    let mut model = Preference {
        reference: Frozen::new(&policy),
        policy,
    };
    let mut optimizer = SgdConfig::new().init();
    for _ in 0..3 {
        let grads = GradientsParams::from_grads(model.loss().backward(), &model);
        model = optimizer.step(0.5, model, grads);
    }
    model.policy
}

#[test]
fn adapters_off_are_the_base_bit_by_bit() {
    let base = bigram(&device().autodiff());
    let before = numbers(&Frozen::new(&base));
    let policy = trained(base.apply_lora(Lora::new(2, 4.0)));
    assert_ne!(
        numbers(&Frozen::new(&policy)),
        before,
        "the adapters trained"
    );
    let (reference, removed) = Frozen::without_adapters(&policy).unwrap();
    assert_eq!(removed, 2, "of the embedding and of the head's weight");
    assert_eq!(numbers(&reference), before);
    assert_eq!(reference.num_params(), 0);
    // Where there is none, the caller has another model than it thinks.
    let merged = policy.materialize();
    let error = Frozen::without_adapters(&merged).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`model`: expected LoRA adapters, found none"
    );
}

/// What the most frequent mistake with LoRA costs: the policy's own start is its reference.
#[test]
fn a_policy_that_starts_from_an_sft_adapter() {
    let sft = trained(bigram(&device().autodiff()).apply_lora(Lora::new(2, 4.0)));
    let first_loss = |reference: Frozen<Bigram>| {
        let policy = sft.clone().with_dropout(0.0);
        to_vec(Preference { reference, policy }.loss())[0]
    };
    let off_ln_2 = |loss: f64| (loss - std::f64::consts::LN_2).abs();
    assert!(off_ln_2(first_loss(Frozen::new(&sft))) < 1e-6);
    let (base, _) = Frozen::without_adapters(&sft).unwrap();
    assert!(off_ln_2(first_loss(base)) > 1e-3);
}

#[test]
fn the_base_of_qlora_is_the_quantised_one() {
    if device() != Device::flex() {
        return; // NdArray's quantised weights are gone from Burn 0.22 on.
    }
    let scheme = device().settings().quantization.scheme;
    let scheme = scheme.with_value(QuantValue::Q8S);
    let quantizer = || Quantizer::new(Calibration::MinMax, scheme);
    let base = bigram(&device().autodiff());
    let dense = numbers(&Frozen::new(&base));
    let adapted = base.apply_qlora(QLora::new(Lora::new(2, 4.0), quantizer()));
    let before = numbers(&Frozen::new(&adapted));
    assert_ne!(before, dense, "eight bits");
    assert_close(&before, &dense, 0.05, "but close");

    let policy = trained(adapted);
    let (reference, _) = Frozen::without_adapters(&policy).unwrap();
    assert_eq!(numbers(&reference), before);
    // A hard update copies the adapters.
    let moved = reference.moved_toward(&policy, 1.0).unwrap();
    assert_eq!(numbers(&moved), numbers(&Frozen::new(&policy)));
}

#[test]
fn adapters_have_no_mixture() {
    let policy = trained(bigram(&device().autodiff()).apply_lora(Lora::new(2, 4.0)));
    let (reference, _) = Frozen::without_adapters(&policy).unwrap();
    let error = reference.moved_toward(&policy, 0.5).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`policy`: expected no adapter for 0 < alpha < 1: materialize both models, found one at \
         `embedding.weight.lora.a`"
    );
    let hard = reference.moved_toward(&policy, 1.0).unwrap();
    assert_eq!(numbers(&hard), numbers(&Frozen::new(&policy)));
    assert_eq!(
        numbers(&reference.moved_toward(&policy, 0.0).unwrap()),
        numbers(&reference)
    );
    // Of the dense weights there is one.
    let dense = |model: Bigram| model.materialize();
    let soft = Frozen::new(&dense(reference.model().clone()))
        .moved_toward(&dense(policy.valid()), 0.5)
        .unwrap();
    let middle = |(a, b): (&f64, &f64)| (a + b) / 2.0;
    let ends = [reference.model(), &policy.valid()].map(|m| to_vec(m.embedding.weight.val()));
    let expected: Vec<f64> = ends[0].iter().zip(&ends[1]).map(middle).collect();
    assert_close(&weights(soft.model()), &expected, 1e-6, "half way");
}

#[test]
fn one_copy_per_device() {
    let reference = Frozen::new(&bigram(&device()));
    let before = numbers(&reference);
    let other = elsewhere();
    assert_eq!(reference.devices(), vec![device()]);

    let there = reference.clone().fork(&other);
    assert_eq!(there.devices(), vec![other.clone()]);
    assert_eq!(weights(there.model()), weights(reference.model()));

    // A second trip, by any clone, takes the copy that is there: the ids of a new one are the
    // same, so the storage has to tell.
    let again = reference.clone().to_device(&other);
    let tensor = again.model().embedding.weight.val();
    drop(again);
    assert!(!tensor.can_mut(), "storage is shared with the first copy");

    let back = there.to_device(&device());
    assert_eq!(numbers(&back), before);
    assert_eq!(back.devices(), vec![device()]);
}

#[test]
fn a_moving_reference_follows_by_path() {
    let device = device();
    let (a, b) = (bigram(&device), Bigram::new([VOCAB, 5], 1, &device));
    let reference = Frozen::new(&a);
    // Other ids, other weights: only the paths agree.
    let moved = reference.moved_toward(&b, 0.25).unwrap();
    let expected: Vec<f64> = weights(&a)
        .iter()
        .zip_equal(weights(&b))
        .map(|(a, b)| 0.75 * a + 0.25 * b)
        .collect();
    crate::support::assert_close(&weights(moved.model()), &expected, 1e-6, "mixed");
    assert_eq!(weights(reference.model()), weights(&a), "the old one stays");

    let hard = ReferenceSchedule::hard(3).unwrap();
    let soft = ReferenceSchedule::soft(1).unwrap();
    let after = |schedule: ReferenceSchedule, step| {
        let moved = schedule.after_step(step, reference.clone(), &b).unwrap();
        weights(moved.model())
    };
    assert_eq!(after(hard, 2), weights(&a));
    assert_eq!(after(hard, 3), weights(&b));
    assert_ne!(after(soft, 1), weights(&a));
    let training = b.train();
    let moved = reference.moved_toward(&training, 1.0).unwrap();
    assert!(
        !moved.model().embedding.weight.val().is_autodiff(),
        "no graph of the policy"
    );

    let wider = Bigram {
        head: LinearConfig::new(5, VOCAB + 1).init(&device),
        ..a.clone()
    };
    let error = reference.moved_toward(&wider, 1.0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`policy`: expected shape [5, 7] at `head.weight`, found [5, 8]"
    );
    let unbiased = LinearConfig::new(5, VOCAB).with_bias(false).init(&device);
    let less = Bigram {
        head: unbiased,
        ..a.clone()
    };
    let error = reference.moved_toward(&less, 1.0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`policy`: expected shape [7] at `head.bias`, found nothing"
    );
    let error = Frozen::new(&less).moved_toward(&a, 1.0).unwrap_err();
    assert_eq!(error.found(), "another parameter at `head.bias`");
    assert_eq!(
        ReferenceSchedule::new(0, 0.5).unwrap_err().name(),
        "interval"
    );
    assert_eq!(ReferenceSchedule::new(1, 0.0).unwrap_err().name(), "alpha");
}

/// Whatever head a model hands out, the reference's log-probs have no graph.
#[test]
fn a_trained_head_does_not_train_the_reference() {
    let device = device();
    let leaf = |shape: [usize; 2]| Tensor::<2>::ones(shape, &device).autodiff().require_grad();
    let head =
        |weight: Tensor<2>, bias: Tensor<2>| LmHead::new(weight).with_bias(bias.reshape([5]));
    let plain = |shape: [usize; 2]| Tensor::<2>::ones(shape, &device);
    let heads = [
        head(leaf([5, 3]), plain([1, 5])),
        head(plain([5, 3]), leaf([1, 5])),
        head(leaf([5, 3]), leaf([1, 5])),
    ];
    let reference = Frozen::new(&bigram(&device));
    for head in heads {
        let ours = batch().reference(&reference, |_, tokens| {
            let [batch, time] = tokens.dims();
            (Tensor::ones([batch, time, 3], &device), head.clone())
        });
        assert!(!ours.unwrap().sum().is_autodiff());
    }
}

#[test]
fn it_says_what_it_holds() {
    let reference = Frozen::new(&bigram(&device()));
    let text = format!("{reference:?}");
    assert!(
        text.starts_with("Frozen(") && text.contains("embedding"),
        "{text}"
    );
    let policy = bigram(&device());
    let model = Preference {
        reference: reference.clone(),
        policy,
    };
    let shown = model.to_string();
    let shown = &shown[..shown.find("policy").unwrap()];
    assert!(shown.contains("model") && shown.contains("head"), "{shown}");
    assert_eq!(reference.devices(), [device()]);
}
