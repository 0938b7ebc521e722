//! Nothing of a training step is read back before its metrics are.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use burn_preference::log_probs::{CompletionMask, Discrepancy, ModelOutput, WithStatistics};
use burn_preference::tokens::{PackedBatch, Packing, Padding, Sequence, TokenBatch, TokenTensors};
use burn_preference::training::gradients::clip_by_global_norm;
use burn_preference::training::metrics::Observe;
use burn_preference::{
    BatchMetrics, DpoLossConfig, Frozen, KlEstimate, KtoLossConfig, LossOutput, Objective, Pair,
    PlackettLuceLossConfig, PolicyPair, Ranked, RelativeLogProbs, SequenceLogProbs, TdpoLossConfig,
    TokenLogProbs, Unpaired, WithBaseline, WithSequenceKl,
};

use crate::floors::{sources, tokens};
use crate::support::bigram::Bigram;
#[cfg(not(all(feature = "remote-server", feature = "remote-websocket")))]
use crate::support::device;

/// Functions of Burn that wait for the device, all or on some backends.
const READS: [&str; 21] = [
    "argsort",
    "argsort_descending",
    "argwhere",
    "argwhere_async",
    "into_data",
    "into_data_async",
    "into_scalar",
    "into_scalar_async",
    "mask_select",
    "nonzero",
    "nonzero_async",
    "sort",
    "sort_descending",
    "sort_descending_with_indices",
    "sort_with_indices",
    "sync",
    "to_data",
    "to_data_async",
    "try_into_data",
    "try_into_scalar",
    "try_to_data",
];

/// The files that may read, and why no training step waits there.
const READERS: [(&str, &str); 17] = [
    (
        "batch/token_pair.rs",
        "SamPO, as documented: Burn sorts on the host on GPUs",
    ),
    ("error.rs", "where all checks of values read"),
    ("kernel/flex/head/buffers.rs", "Flex computes on the host"),
    ("kernel/flex/logits.rs", "Flex computes on the host"),
    ("kernel/flex/tensors.rs", "Flex computes on the host"),
    (
        "log_probs/mask.rs",
        "a mask that was a tensor, as documented",
    ),
    (
        "log_probs/token.rs",
        "a check of ids, where a batch is built",
    ),
    (
        "loss/aot.rs",
        "AOT, as documented: Burn sorts on the host on GPUs",
    ),
    ("reference/cache/fingerprint.rs", "once for a model"),
    (
        "reference/cache/store.rs",
        "before training, to write a file",
    ),
    ("training/first_batch/batch.rs", "before training"),
    ("training/first_batch/check.rs", "before training"),
    ("training/first_batch/host.rs", "before training"),
    ("training/first_batch/packed.rs", "before training"),
    ("training/metrics/batch.rs", "metrics"),
    ("training/mpi.rs", "sums over workers, on the host"),
    ("training/reducer.rs", "sums over workers, on the host"),
];

#[test]
fn readers_are_known() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut readers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in sources(&src) {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap();
        let words = tokens(&fs::read_to_string(&path).unwrap());
        for call in words.windows(4) {
            let [object, separator, function, open] = call else {
                unreachable!("four words")
            };
            let of_burn = READS.contains(&function.as_str());
            let ours = object == "InvalidInput" && function == "read";
            if [".", "::"].contains(&separator.as_str()) && open == "(" && (of_burn || ours) {
                readers
                    .entry(name.to_owned())
                    .or_default()
                    .push(function.clone());
            }
        }
    }
    let known = BTreeMap::from(READERS);
    for (file, calls) in &readers {
        assert!(
            known.contains_key(file.as_str()),
            "`{file}` reads: {calls:?}"
        );
    }
    for file in known.keys() {
        assert!(
            readers.contains_key(*file),
            "`{file}` reads nothing any more"
        );
    }
}

/// The numbers of a step that are still on the device.
type Unread = BatchMetrics;

/// A model, its reference and its batches, on a device.
struct Training {
    policy: Bigram,
    reference: Frozen<Bigram>,
    optimizer: ModuleOptimizer,
    padded: TokenBatch,
    packed: PackedBatch,
    /// Tokens as tensors, and marks of the host.
    tensors: TokenTensors,
    mismatched: TokenBatch,
    desirable: Tensor<1, Bool>,
    scores: Tensor<2>,
    present: Tensor<2, Bool>,
}

/// Two pairs: chosen, then rejected.
fn sequences() -> Vec<Sequence> {
    let counted = Sequence::new(&[3], &[4, 5, 1]).with_counted(&[true, false, true]);
    vec![
        Sequence::new(&[1, 2], &[3, 4]),
        counted.unwrap(),
        Sequence::new(&[1, 2], &[5]),
        Sequence::new(&[3], &[2, 2]),
    ]
}

impl Training {
    fn new(device: &Device) -> Self {
        let policy = Bigram::new([6, 4], 1, &device.clone().autodiff());
        let batch = |sequences| TokenBatch::new(sequences, Padding::new(0), device).unwrap();
        let padded = batch(sequences());
        let [rows, time] = padded.ids.dims();
        let marks = sequences().into_iter().flat_map(|sequence| {
            let counted = sequence.counted().map(<[bool]>::to_vec);
            let counted = counted.unwrap_or(vec![true; sequence.completion().len()]);
            let mut row = [vec![false; sequence.prompt().len()], counted].concat();
            row.resize(time, false);
            row
        });
        let marks = TensorData::new(marks.collect(), [rows, time]);
        let mask = CompletionMask::from_data(marks, device).unwrap();
        let packing = Packing::new(Padding::new(0));
        Self {
            reference: Frozen::new(&Bigram::new([6, 4], 2, &device.clone().autodiff())),
            optimizer: AdamWConfig::new().init(),
            tensors: TokenTensors::new(padded.ids.clone(), mask, padded.pad_mask.clone()).unwrap(),
            packed: PackedBatch::new(sequences(), packing, device).unwrap(),
            mismatched: batch(sequences().into_iter().rev().collect()),
            desirable: Tensor::from_bool([true, true, false, false], device),
            scores: Tensor::from_floats([[1.0, 0.0], [0.5, 0.75]], device),
            present: Tensor::from_bool([[true, true], [true, true]], device),
            policy,
            padded,
        }
    }

    /// Backward, clipping and a step of the optimiser.
    fn learn<B: Observe>(&mut self, batch: &B, output: LossOutput<B::Rewards>) -> Unread {
        let metrics = BatchMetrics::observe(batch, &output);
        let grads = GradientsParams::from_grads(output.mean().backward(), &self.policy);
        let (grads, norm) = clip_by_global_norm(grads, &self.policy, 1.0).unwrap();
        self.policy = self.optimizer.step(0.01, self.policy.clone(), grads);
        metrics.with("grad_norm", norm)
    }

    fn dpo(&mut self, relative: RelativeLogProbs) -> Unread {
        let pairs = Pair::from_concatenated(&relative).unwrap();
        let output = DpoLossConfig::new().init().forward(pairs.clone());
        self.learn(&pairs, output)
    }

    fn padded<O: ModelOutput>(
        &self,
        batch: &TokenBatch,
        forward: impl Fn(&Bigram, Tensor<2, Int>) -> O,
    ) -> RelativeLogProbs {
        let ours = batch.log_probs(&self.policy, &forward).unwrap();
        let theirs = batch.reference(&self.reference, &forward).unwrap();
        ours.relative_to(theirs).unwrap()
    }

    fn packed<O: ModelOutput>(
        &self,
        forward: impl Fn(&Bigram, Tensor<2, Int>) -> O,
    ) -> RelativeLogProbs {
        let forward = |model: &Bigram, packed: &PackedBatch| forward(model, packed.ids.clone());
        let ours = self.packed.log_probs(&self.policy, forward).unwrap();
        let theirs = self.packed.reference(&self.reference, forward).unwrap();
        ours.relative_to(theirs).unwrap()
    }

    fn tensors<O: ModelOutput>(
        &self,
        forward: impl Fn(&Bigram, Tensor<2, Int>) -> O,
    ) -> RelativeLogProbs {
        let ours = self.tensors.log_probs(&self.policy, &forward).unwrap();
        let theirs = self.tensors.log_probs(self.reference.model(), &forward);
        ours.relative_to(theirs.unwrap()).unwrap()
    }

    fn kto(&mut self) -> Unread {
        let kl = self.padded(&self.mismatched, Bigram::hidden);
        let z0 = KlEstimate::from_mismatched(&kl).baseline();
        let relative = self.padded(&self.padded, Bigram::hidden);
        let batch = Unpaired::new(relative, self.desirable.clone()).unwrap();
        let batch = WithBaseline::new(batch, z0).unwrap();
        let output = KtoLossConfig::new().init().forward(batch.clone());
        self.learn(&batch, output)
    }

    fn ranked(&mut self) -> Unread {
        let candidates = self.padded(&self.padded, Bigram::hidden);
        let candidates = candidates.split_candidates(2).unwrap();
        let batch = Ranked::new(candidates, self.scores.clone(), self.present.clone()).unwrap();
        let output = PlackettLuceLossConfig::new().init().forward(batch.clone());
        self.learn(&batch, output)
    }

    /// TDPO, whose KL is over the whole vocabulary.
    fn tdpo(&mut self, by_logits: bool) -> Unread {
        let batch = &self.padded;
        let [ours, theirs] =
            [&self.policy, self.reference.model()].map(|model| model.hidden(batch.ids.clone()));
        let kl = if by_logits {
            let [ours, theirs] = [&ours, &theirs].map(|(hidden, head)| head.logits(hidden.clone()));
            batch.discrepancy(Discrepancy::ForwardKl, ours.unwrap(), theirs.unwrap())
        } else {
            batch.discrepancy(Discrepancy::ForwardKl, ours.clone(), theirs.clone())
        };
        let kl = Pair::from_concatenated(&kl.unwrap().sums()).unwrap();
        let [ours, theirs] = [ours, theirs].map(|side| batch.token_log_probs(side).unwrap());
        let relative = ours.sequence().relative_to(theirs.sequence()).unwrap();
        let pairs = Pair::from_concatenated(&relative).unwrap();
        let pairs = WithSequenceKl::new(pairs, kl).unwrap();
        let output = TdpoLossConfig::new().init().forward(pairs.clone());
        self.learn(&pairs, output)
    }

    /// LD-DPO, a clamp, and statistics of the same pass.
    fn by_token(&mut self) -> Unread {
        let batch = &self.padded;
        let of = |model: &Bigram| {
            let output = WithStatistics(model.hidden(batch.ids.clone()));
            let (tokens, statistics) = batch.token_log_probs(output).unwrap();
            let tokens = tokens.restrict(batch.completion_mask.clone()).unwrap();
            let pair = |tokens: TokenLogProbs| Pair::from_concatenated(&tokens).unwrap();
            (pair(tokens), Pair::from_concatenated(&statistics).unwrap())
        };
        let ((ours, statistics), (theirs, _)) = (of(&self.policy), of(self.reference.model()));
        let tokens = ours.relative_to(theirs).unwrap();
        let tokens = tokens.length_desensitized(0.5).unwrap();
        let pairs = tokens.clamped(-3.0, 3.0).unwrap().sequences();
        let output = DpoLossConfig::new().init().forward(pairs.clone());
        self.learn(&pairs, output).with_pair_statistics(&statistics)
    }

    /// Sums that were computed elsewhere, of lengths on the host.
    fn sums(&mut self) -> Unread {
        let lengths: Vec<usize> = sequences().iter().map(Sequence::length).collect();
        let logits = self.policy.logits(self.padded.ids.clone());
        let tokens = self.padded.token_log_probs(logits).unwrap();
        let ours = SequenceLogProbs::new(tokens.sequence().sum(), &lengths).unwrap();
        let pairs = PolicyPair::from_concatenated(&ours).unwrap();
        let pairs = pairs.with_uniform_reference();
        let output = DpoLossConfig::new().init().forward(pairs.clone());
        self.learn(&pairs, output)
    }
}

type Step = fn(&mut Training) -> Unread;

const STEPS: [(&str, Step); 12] = [
    ("padded pairs, hidden states", |of| {
        let relative = of.padded(&of.padded, Bigram::hidden);
        of.dpo(relative)
    }),
    ("padded pairs, logits", |of| {
        let relative = of.padded(&of.padded, Bigram::logits);
        of.dpo(relative)
    }),
    ("packed pairs, hidden states", |of| {
        let relative = of.packed(Bigram::hidden);
        of.dpo(relative)
    }),
    ("packed pairs, logits", |of| {
        let relative = of.packed(Bigram::logits);
        of.dpo(relative)
    }),
    ("tensors of one's own, hidden states", |of| {
        let relative = of.tensors(Bigram::hidden);
        of.dpo(relative)
    }),
    ("tensors of one's own, logits", |of| {
        let relative = of.tensors(Bigram::logits);
        of.dpo(relative)
    }),
    ("KTO and its reference point", Training::kto),
    ("lists", Training::ranked),
    ("TDPO, hidden states", |of| of.tdpo(false)),
    ("TDPO, logits", |of| of.tdpo(true)),
    ("tokens and statistics", Training::by_token),
    ("sums of one's own", Training::sums),
];

/// Every way of a step, with the number of answers that the device gave meanwhile.
fn run(device: &Device, answers: impl Fn() -> usize) {
    let mut losses = BTreeMap::new();
    for (name, step) in STEPS {
        let mut training = Training::new(device);
        // The first step may ask what the device can do.
        step(&mut training);
        let before = answers();
        let unread = step(&mut training);
        assert_eq!(answers() - before, 0, "{name}: answers before the metrics");
        let metrics = unread.read().unwrap();
        let (loss, norm) = (
            metrics.get("loss").unwrap(),
            metrics.get("grad_norm").unwrap(),
        );
        assert!(loss.is_finite() && norm > 0.0, "{name}: {loss}, {norm}");
        losses.insert(name, loss);
    }
    // Ways of one step.
    let [first, ..] = STEPS.map(|(name, _)| losses[name]);
    for (name, _) in &STEPS[..6] {
        assert!((losses[name] - first).abs() < 1e-5, "{name}: {losses:?}");
    }
}

#[cfg(not(all(feature = "remote-server", feature = "remote-websocket")))]
#[test]
fn steps_agree() {
    run(&device(), || 0);
}

/// A device of another machine answers only what it is asked: every read of a step is counted, of
/// ours and of Burn's.
#[cfg(all(feature = "remote-server", feature = "remote-websocket"))]
mod counted {
    use super::*;
    use crate::support::device::remote::counted_server;

    #[test]
    fn a_step_reads_nothing() {
        let (device, answers) = counted_server();
        run(&device, || answers.count());
    }

    /// What counts reads has to see them.
    #[test]
    fn a_read_is_counted() {
        let (device, answers) = counted_server();
        let training = Training::new(&device);
        let batch = &training.padded;
        let reads = |step: &dyn Fn()| {
            step();
            let before = answers.count();
            step();
            answers.count() - before
        };
        let mask = batch.completion_mask.tensor();
        assert!(reads(&|| drop(mask.clone().argwhere())) > 0);
        assert!(reads(&|| drop(batch.ids.to_data())) > 0);
        // A mask that the host does not know: once for each pass with a head.
        let of = |mask: CompletionMask, by_logits: bool| {
            let (ids, policy) = (batch.ids.clone(), &training.policy);
            reads(&|| {
                let (ids, mask) = (ids.clone(), mask.clone());
                if by_logits {
                    TokenLogProbs::from_output(policy.logits(ids.clone()), ids, mask).unwrap();
                } else {
                    TokenLogProbs::from_output(policy.hidden(ids.clone()), ids, mask).unwrap();
                }
            })
        };
        assert!(of(mask.clone().into(), false) > 0);
        assert_eq!(of(mask.into(), true), 0);
        assert_eq!(of(batch.completion_mask.clone(), false), 0);
    }
}
