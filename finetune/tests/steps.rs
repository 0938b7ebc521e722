//! One DPO step of every family against TRL's on the same weights and pairs (scripts/steps.py):
//! log-probabilities, the loss and every gradient, from padded rows and from packed ones.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor};
use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence, TokenBatch};
use burn_preference::{DpoLossConfig, Frozen, Objective, ReferencedPair, TokenLogProbs};
use finetune::{Decoder, load};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use support::{FAMILIES, data, difference};

/// In f32, TRL's own step is off by 5e-6 nats, 6e-7 of the loss and 1e-5 of a gradient's largest
/// entry from the same step in f64.
const NATS: f64 = 2e-5;
const OF_LOSS: f64 = 2e-6;
const OF_LARGEST: f64 = 3e-5;

/// Shape and numbers of each tensor.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// What TRL's trainer made of the batch: rows are `[chosen; rejected]`, and column t of a model's
/// log-probabilities is token t + 1, 0 where it does not count.
#[derive(Deserialize)]
struct Step {
    beta: f64,
    input_ids: Vec<Vec<u32>>,
    attention_mask: Vec<Vec<u8>>,
    completion_mask: Vec<Vec<u8>>,
    policy: Vec<Vec<f64>>,
    reference: Vec<Vec<f64>>,
    loss: f64,
    rewards: Rewards,
}

/// Means of β·log-ratio.
#[derive(Deserialize)]
struct Rewards {
    chosen: f64,
    rejected: f64,
}

impl Step {
    /// The rows without padding.
    fn sequences(&self) -> Vec<Sequence> {
        let rows = self.input_ids.iter().enumerate();
        let ones = |mask: &[u8]| mask.iter().filter(|one| **one != 0).count();
        rows.map(|(i, ids)| {
            let length = ones(&self.attention_mask[i]);
            let start = length - ones(&self.completion_mask[i]);
            Sequence::new(&ids[..start], &ids[start..length])
        })
        .collect()
    }
}

fn read_tensors(path: &Path) -> Tensors {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, tensor)| {
        assert_eq!(tensor.dtype(), Dtype::F32);
        let (words, rest) = tensor.data().as_chunks();
        assert!(rest.is_empty());
        let numbers = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        (name, (tensor.shape().to_vec(), numbers))
    });
    tensors.collect()
}

/// The policy that steps.py makes of a family's model, from a folder of its own.
fn policy(family: &str, device: &Device) -> Decoder {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = Tensors::new();
    for entry in fs::read_dir(data(family)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            tensors.extend(read_tensors(&path));
        }
    }
    let perturbed: Vec<_> = tensors
        .iter()
        .zip([1.0_f32, 1.05, 1.1].iter().cycle())
        .map(|((name, (shape, numbers)), factor)| {
            let bytes = numbers.iter().flat_map(|x| (x * factor).to_le_bytes());
            (name, shape, bytes.collect::<Vec<u8>>())
        })
        .collect();
    let views = perturbed.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, (*shape).clone(), bytes);
        (name.as_str(), view.unwrap())
    });
    let file = folder.path().join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file).unwrap();
    let config = "config.json";
    fs::copy(data(family).join(config), folder.path().join(config)).unwrap();
    load(folder.path(), device).unwrap()
}

/// Gradients by Hugging Face's names, in its layout.
struct Found<'a> {
    gradients: &'a Gradients,
    gemma: bool,
    path: Vec<String>,
    tensors: Tensors,
}

impl ModuleVisitor for Found<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        // Gemma has a norm behind attention, and other names for those around it.
        let before_mlp = if self.gemma {
            "pre_feedforward_layernorm"
        } else {
            "post_attention_layernorm"
        };
        let owner = match path.as_slice() {
            ["embedding", _] => "model.embed_tokens".to_owned(),
            ["norm", _] => "model.norm".to_owned(),
            ["head", _] => "lm_head".to_owned(),
            ["layers", layer, part, _] => {
                let part = match *part {
                    "input_norm" => "input_layernorm",
                    "query" => "self_attn.q_proj",
                    "key" => "self_attn.k_proj",
                    "value" => "self_attn.v_proj",
                    "output" => "self_attn.o_proj",
                    "query_norm" => "self_attn.q_norm",
                    "key_norm" => "self_attn.k_norm",
                    "after_attention" => "post_attention_layernorm",
                    "mlp_norm" => before_mlp,
                    "gate" => "mlp.gate_proj",
                    "up" => "mlp.up_proj",
                    "down" => "mlp.down_proj",
                    "after_mlp" => "post_feedforward_layernorm",
                    other => panic!("{other}"),
                };
                format!("model.layers.{layer}.{part}")
            }
            other => panic!("{other:?}"),
        };
        let name = match *path.last().unwrap() {
            "weight" | "gamma" => format!("{owner}.weight"),
            "bias" => format!("{owner}.bias"),
            other => panic!("{other}"),
        };
        let gradient = param.val().grad(self.gradients);
        let gradient = gradient.unwrap_or_else(|| panic!("{name} has no gradient"));
        // `[in, out]` here, `[out, in]` there; rows of the embedding are words on both sides.
        let gradient = if D == 2 && path[0] != "embedding" {
            gradient.swap_dims(0, 1)
        } else {
            gradient
        };
        let shape = gradient.dims().to_vec();
        let numbers = gradient.into_data().iter().collect();
        assert!(self.tensors.insert(name, (shape, numbers)).is_none());
    }
}

fn mean(values: Tensor<1>) -> f64 {
    values.mean().into_scalar::<f64>()
}

/// The loss, its gradients and what it is made of, each against TRL's.
fn compare(
    family: &str,
    step: &Step,
    policy: &Decoder,
    ours: TokenLogProbs,
    theirs: TokenLogProbs,
) {
    for (found, expected) in [(&ours, &step.policy), (&theirs, &step.reference)] {
        let worst = difference(
            &found.log_probs().into_data().iter().collect::<Vec<_>>(),
            &expected.concat(),
        );
        println!("{family}: off by {worst:.1e} nats a token at most");
        assert!(worst < NATS, "{family}: {worst}");
    }
    let relative = ours.sequence().relative_to(theirs.sequence()).unwrap();
    let pair = ReferencedPair::from_concatenated(&relative).unwrap();
    let dpo = DpoLossConfig::new().with_beta(step.beta).init();
    let output = dpo.forward(pair);
    let rewards = output.rewards();
    for (found, expected) in [
        (&rewards.chosen, step.rewards.chosen),
        (&rewards.rejected, step.rewards.rejected),
    ] {
        // β times a sum of the errors of some ten tokens.
        let found = mean(found.clone().inner());
        assert!((found - expected).abs() < NATS, "{family}: {found}");
    }
    let loss = output.mean();
    let gradients = loss.backward();
    let off = (loss.into_scalar::<f64>() / step.loss - 1.0).abs();
    println!("{family}: the loss is off by {off:.1e} of itself");
    assert!(off < OF_LOSS, "{family}: {off}");

    let mut found = Found {
        gradients: &gradients,
        gemma: policy.config().gemma,
        path: Vec::new(),
        tensors: Tensors::new(),
    };
    policy.visit(&mut found);
    let expected = read_tensors(&data("steps").join(format!("{family}.safetensors")));
    let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found.tensors), names(&expected));
    let mut worst = (0.0, "");
    for (name, (shape, numbers)) in &expected {
        let (ours_shape, ours) = &found.tensors[name];
        assert_eq!(ours_shape, shape, "{family}: {name}");
        let largest = numbers.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        let wide = |numbers: &[f32]| numbers.iter().copied().map(f64::from).collect::<Vec<_>>();
        let off = difference(&wide(ours), &wide(numbers)) / f64::from(largest);
        assert!(off < OF_LARGEST, "{family}: {name}: {off}");
        if off > worst.0 {
            worst = (off, name);
        }
    }
    let (off, name) = worst;
    println!("{family}: gradients are off by {off:.1e} of their largest entry at most, {name}");
}

struct Models {
    step: Step,
    policy: Decoder,
    reference: Frozen<Decoder>,
    device: Device,
}

fn models(family: &str) -> Models {
    let text = fs::read_to_string(data("steps").join(format!("{family}.json"))).unwrap();
    let device = Device::default().autodiff();
    Models {
        step: serde_json::from_str(&text).unwrap(),
        policy: policy(family, &device),
        reference: Frozen::new(&load(&data(family), &device).unwrap()),
        device,
    }
}

#[test]
fn padded_rows_are_trls_step() {
    for family in FAMILIES {
        let models = models(family);
        let batch =
            TokenBatch::new(models.step.sequences(), Padding::new(0), &models.device).unwrap();
        // What was rebuilt from lengths is TRL's batch.
        let ids: Vec<u32> = batch.ids.clone().into_data().iter().collect();
        assert_eq!(ids, models.step.input_ids.concat());
        let counted: Vec<u8> = batch
            .completion_mask
            .tensor()
            .int()
            .into_data()
            .iter()
            .collect();
        assert_eq!(counted, models.step.completion_mask.concat());

        let [ours, theirs] = [&models.policy, models.reference.model()].map(|model| {
            batch
                .token_log_probs(model.hidden(batch.ids.clone()))
                .unwrap()
        });
        compare(family, &models.step, &models.policy, ours, theirs);
    }
}

/// Chosen and rejected beside one copy of their prompt.
#[test]
fn packed_rows_are_trls_step() {
    for family in FAMILIES {
        let models = models(family);
        let packing = Packing::new(Padding::new(0)).to_rows_of(32).unwrap();
        let batch = PackedBatch::new(models.step.sequences(), packing, &models.device).unwrap();
        // Fewer tokens than a row for each sequence.
        assert!(batch.ids.shape().num_elements() < models.step.input_ids.concat().len());
        let [ours, theirs] = [&models.policy, models.reference.model()]
            .map(|model| batch.token_log_probs(model.hidden_packed(&batch)).unwrap());
        compare(family, &models.step, &models.policy, ours, theirs);
    }
}
