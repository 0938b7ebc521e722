//! A two-layer Llama through the whole pipeline: from token ids to gradient norms per parameter,
//! against one step of TRL's real trainers in f32.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, Gradients, Int, Tensor, TensorData};
use burn_preference::{
    BatchMetrics, DpoLossConfig, Frozen, IpoLossConfig, KlEstimate, KtoLossConfig, LabelNoise,
    NllNormalization, Normalization, Objective, PolicyPair, ReferencedPair, SequenceLogProbs,
    TokenLogProbs, Unpaired, WithBaseline,
};
use serde_json::Value;

use crate::support::llama::{Llama, folder, hidden, load};
use crate::support::{ZipEqual, assert_close, bools, by_hidden, device, to_vec};
use crate::{all_numbers, read};

/// f32 against f64: what TRL's own f32 run differs by, and a little more.
const TOLERANCE: f64 = 5e-6;

fn table(value: &Value) -> (Vec<i32>, [usize; 2]) {
    let rows = value.as_array().unwrap();
    #[expect(
        clippy::cast_possible_truncation,
        reason = "an id is a small whole number"
    )]
    let values: Vec<i32> = all_numbers(value).into_iter().map(|x| x as i32).collect();
    let shape = [rows.len(), values.len() / rows.len()];
    (values, shape)
}

fn tokens(value: &Value) -> Tensor<2, Int> {
    let (values, shape) = table(value);
    Tensor::from_data(TensorData::new(values, shape), &device())
}

fn mask(value: &Value) -> Tensor<2, Bool> {
    let (values, shape) = table(value);
    let values: Vec<bool> = values.into_iter().map(|x| x == 1).collect();
    Tensor::from_data(TensorData::new(values, shape), &device())
}

struct Models {
    policy: Llama,
    reference: Frozen<Llama>,
}

impl Models {
    fn load() -> Self {
        let device = device().autodiff();
        Self {
            policy: load("policy.safetensors", &device),
            reference: Frozen::new(&load("reference.safetensors", &device)),
        }
    }

    /// Policy and reference log-probs of the rows that `prefix` names.
    fn log_probs(&self, file: &Value, prefix: &str) -> (TokenLogProbs, TokenLogProbs) {
        let ids = tokens(&file[format!("{prefix}input_ids")]);
        let counted = mask(&file[format!("{prefix}completion_mask")]);
        let of = |model: &Llama| {
            let (ids, counted) = (ids.clone(), counted.clone());
            if by_hidden() {
                let (states, head) = hidden(model, ids.clone());
                return TokenLogProbs::from_output((states, head), ids, counted).unwrap();
            }
            TokenLogProbs::from_output(model.forward(ids.clone()), ids, counted).unwrap()
        };
        (of(&self.policy), of(self.reference.model()))
    }
}

/// Gradient norms by Hugging Face's parameter names.
struct Norms<'a> {
    grads: &'a Gradients,
    path: Vec<String>,
    found: BTreeMap<String, f64>,
}

impl ModuleVisitor for Norms<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let name = match path.as_slice() {
            ["embedding", _] => "model.embed_tokens.weight".to_owned(),
            ["norm", _] => "model.norm.weight".to_owned(),
            ["head", _] => "lm_head.weight".to_owned(),
            ["blocks", layer, part, _] => {
                let part = match *part {
                    "attention_norm" => "input_layernorm",
                    "mlp_norm" => "post_attention_layernorm",
                    "query" => "self_attn.q_proj",
                    "key" => "self_attn.k_proj",
                    "value" => "self_attn.v_proj",
                    "output" => "self_attn.o_proj",
                    "gate" => "mlp.gate_proj",
                    "up" => "mlp.up_proj",
                    "down" => "mlp.down_proj",
                    other => panic!("{other}"),
                };
                format!("model.layers.{layer}.{part}.weight")
            }
            other => panic!("{other:?}"),
        };
        let grad = param
            .val()
            .grad(self.grads)
            .expect("every parameter has a gradient");
        let squares: f64 = to_vec(grad).iter().map(|g| g * g).sum();
        self.found.insert(name, squares.sqrt());
    }
}

fn check_norms(model: &Llama, loss: &Tensor<1>, expected: &Value) {
    let grads = loss.backward();
    let mut visitor = Norms {
        grads: &grads,
        path: Vec::new(),
        found: BTreeMap::new(),
    };
    model.visit(&mut visitor);
    let expected = expected.as_object().unwrap();
    assert_eq!(visitor.found.len(), expected.len());
    for (name, norm) in expected {
        assert_close(&[visitor.found[name]], &all_numbers(norm), TOLERANCE, name);
    }
}

#[test]
fn dpo_batch() {
    let file = read(&folder().join("dpo.json"));
    let f64s = &file["f64"];
    let models = Models::load();
    let (policy, reference) = models.log_probs(&file, "");
    let per_token = to_vec(policy.log_probs());
    let counted = to_vec(policy.mask().float());
    let expected = all_numbers(&f64s["per_token_logps"]);
    for ((ours, counted), theirs) in per_token.iter().zip_equal(counted).zip_equal(expected) {
        assert_close(&[*ours], &[theirs * counted], TOLERANCE, "per token");
    }
    let (policy, reference) = (policy.sequence(), reference.sequence());
    assert_close(
        &to_vec(policy.sum()),
        &all_numbers(&f64s["seq_logps"]),
        TOLERANCE,
        "sums",
    );
    let sums = to_vec(reference.sum());
    assert_close(
        &sums,
        &all_numbers(&f64s["ref_seq_logps"]),
        TOLERANCE,
        "reference sums",
    );

    let pair = |x: &SequenceLogProbs| PolicyPair::from_concatenated(x).unwrap();
    let batch = pair(&policy).relative_to(pair(&reference)).unwrap();
    let output = DpoLossConfig::new().init().forward(batch.clone());
    let loss = output.mean();
    assert_close(
        &to_vec(loss.clone()),
        &all_numbers(&f64s["loss"]),
        TOLERANCE,
        "loss",
    );
    let rewards = output.rewards().clone().map(to_vec);
    assert_close(
        &rewards.chosen,
        &all_numbers(&f64s["chosen_rewards"]),
        TOLERANCE,
        "rewards",
    );
    assert_close(
        &rewards.rejected,
        &all_numbers(&f64s["rejected_rewards"]),
        TOLERANCE,
        "rewards",
    );

    let metrics = BatchMetrics::observe(&batch, &output).read().unwrap();
    let mut compared = 0;
    for (key, value) in file["f32"]["metrics"].as_object().unwrap() {
        if let Some(ours) = metrics.get(key) {
            assert_close(&[ours], &all_numbers(value), TOLERANCE, key);
            compared += 1;
        }
    }
    assert_eq!(compared, 6, "rewards and log-probs under TRL's keys");

    let others = &f64s["losses_other_types_beta_0_1"];
    let other = |name: &str, objective: &dyn Objective<ReferencedPair>| {
        let ours = to_vec(objective.forward(batch.clone()).mean());
        assert_close(&ours, &all_numbers(&others[name]), TOLERANCE, name);
    };
    let dpo = DpoLossConfig::new();
    other("ipo", &IpoLossConfig::new().init());
    other(
        "sigmoid_norm",
        &dpo.clone().with_normalization(Normalization::Mean).init(),
    );
    other(
        "robust",
        &dpo.with_label_noise(LabelNoise::Robust(0.1)).init(),
    );
    let sft = NllNormalization::Token.nll(batch.chosen.policy());
    assert_close(
        &to_vec(sft.mean()),
        &all_numbers(&others["sft"]),
        TOLERANCE,
        "sft",
    );

    check_norms(&models.policy, &loss, &f64s["grad_norms"]);
    check_norms_of_f32(&file);
}

/// The reader itself: TRL's f32 norms agree with its f64 ones to the tolerance in use.
fn check_norms_of_f32(file: &Value) {
    for (name, norm) in file["f32"]["grad_norms"].as_object().unwrap() {
        let f64s = all_numbers(&file["f64"]["grad_norms"][name]);
        assert_close(&all_numbers(norm), &f64s, TOLERANCE, name);
    }
}

#[test]
fn kto_batch() {
    let file = read(&folder().join("kto.json"));
    let f64s = &file["f64"];
    let models = Models::load();
    let relative = |prefix: &str| {
        let (policy, reference) = models.log_probs(&file, prefix);
        policy.sequence().relative_to(reference.sequence()).unwrap()
    };
    let (completions, mismatched) = (relative(""), relative("KL_"));
    for (ours, key) in [
        (completions.policy().sum(), "seq_logps"),
        (completions.reference().sum(), "ref_seq_logps"),
        (mismatched.policy().sum(), "kl_seq_logps"),
        (mismatched.reference().sum(), "kl_ref_seq_logps"),
    ] {
        assert_close(&to_vec(ours), &all_numbers(&f64s[key]), TOLERANCE, key);
    }
    // A difference of sums near −40 in f32.
    let z0 = KlEstimate::from_mismatched(&mismatched).baseline();
    assert_close(&to_vec(z0.clone()), &all_numbers(&f64s["kl"]), 1e-5, "z₀");

    let labels: Vec<bool> = all_numbers(&file["label"])
        .into_iter()
        .map(|x| x > 0.0)
        .collect();
    let batch = Unpaired::new(completions, bools(&labels)).unwrap();
    let batch = WithBaseline::new(batch, z0).unwrap();
    let output = KtoLossConfig::new().init().forward(batch);
    let loss = output.mean();
    assert_close(
        &to_vec(loss.clone()),
        &all_numbers(&f64s["loss"]),
        TOLERANCE,
        "loss",
    );
    let losses = to_vec(output.losses());
    let side = |of: bool| losses.iter().zip(&labels).filter(move |(_, l)| **l == of);
    let ordered: Vec<f64> = side(true)
        .chain(side(false))
        .map(|(loss, _)| *loss)
        .collect();
    let expected = all_numbers(&f64s["losses_desirable_then_undesirable"]);
    assert_close(&ordered, &expected, TOLERANCE, "losses");
    check_norms(&models.policy, &loss, &f64s["grad_norms"]);
}
