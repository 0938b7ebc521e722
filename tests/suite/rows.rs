//! Batches that ask a model themselves: the same numbers as the primitives give, bit by bit.

use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::{Dataset, InMemDataset};
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::{Device, Int, Tensor};
use burn_preference::data::{
    Collator, Example, Mismatched, PairTokens, RankedTokens, Truncation, UnpairedTokens,
    WithMismatched,
};
use burn_preference::log_probs::{ModelOutput, WithStatistics};
use burn_preference::reference::cache::{CacheError, Fingerprint, ReferenceCache};
use burn_preference::tokens::{
    PackedBatch, Packing, Padding, Reference, Sequence, TokenBatch, TokenTensors,
};
use burn_preference::{
    Error, Frozen, InvalidInput, LmHead, Pair, Ranked, RelativeLogProbs, SequenceLogProbs,
    TokenLogProbs, Unpaired,
};

use crate::support::{device, to_vec};

/// A model of positions as well, which packed rows have to give it.
#[derive(Module, Debug)]
struct Model {
    words: Embedding,
    positions: Embedding,
    head: Linear,
}

const VOCAB: usize = 11;

impl Model {
    fn new(seed: u64) -> Self {
        let device = device().autodiff();
        device.seed(seed);
        Self {
            words: EmbeddingConfig::new(VOCAB, 6).init(&device),
            positions: EmbeddingConfig::new(16, 6).init(&device),
            head: LinearConfig::new(6, VOCAB).init(&device),
        }
    }

    fn at(&self, ids: Tensor<2, Int>, positions: Tensor<2, Int>) -> Tensor<3> {
        self.words.forward(ids) + self.positions.forward(positions)
    }

    fn hidden(&self, ids: Tensor<2, Int>) -> (Tensor<3>, LmHead) {
        let ([rows, time], device) = (ids.dims(), ids.device());
        let positions = Tensor::<1, Int>::arange(0..time as i64, &device);
        let positions = positions.unsqueeze().repeat_dim(0, rows);
        (self.at(ids, positions), LmHead::from(&self.head))
    }

    fn logits(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        self.head.forward(self.hidden(ids).0)
    }

    fn packed_hidden(&self, batch: &PackedBatch) -> (Tensor<3>, LmHead) {
        let hidden = self.at(batch.ids.clone(), batch.positions.clone());
        (hidden, LmHead::from(&self.head))
    }

    fn packed_logits(&self, batch: &PackedBatch) -> Tensor<3> {
        self.head.forward(self.packed_hidden(batch).0)
    }
}

fn sequences() -> Vec<Sequence> {
    let counted = Sequence::new(&[4, 5], &[6, 7, 8]).with_counted(&[true, false, true]);
    vec![
        Sequence::new(&[4, 5], &[1, 2]),
        counted.unwrap(),
        Sequence::new(&[3], &[9]),
        Sequence::new(&[4, 5], &[10, 1, 2, 3]),
    ]
}

fn padded() -> TokenBatch {
    TokenBatch::new(sequences(), Padding::new(0), &device()).unwrap()
}

fn packed() -> PackedBatch {
    let packing = Packing::new(Padding::new(0)).to_rows_of(11).unwrap();
    PackedBatch::new(sequences(), packing, &device()).unwrap()
}

/// The primitives, of rows that are padded, and of a mask that has to be read back.
fn primitive(model: &Model, by_logits: bool) -> TokenLogProbs {
    let batch = padded();
    let (ids, mask) = (batch.ids.clone(), batch.completion_mask.tensor());
    if by_logits {
        return TokenLogProbs::from_output(model.logits(ids.clone()), ids, mask).unwrap();
    }
    let (hidden, head) = model.hidden(ids.clone());
    TokenLogProbs::from_output((hidden, head), ids, mask).unwrap()
}

fn numbers(y: &SequenceLogProbs) -> [Vec<f64>; 2] {
    [to_vec(y.sum()), to_vec(y.lengths())]
}

/// The gradient of the embedding by the sum of `y`.
fn gradient(model: &Model, y: &SequenceLogProbs) -> Vec<f64> {
    let grads = y.sum().sum().backward();
    to_vec(model.words.weight.val().grad(&grads).unwrap())
}

#[test]
fn padded_rows() {
    let model = Model::new(1);
    let batch = padded();
    for by_logits in [true, false] {
        let tokens = primitive(&model, by_logits);
        let (expected, slopes) = {
            let expected = tokens.sequence();
            (numbers(&expected), gradient(&model, &expected))
        };
        let check = |ours: SequenceLogProbs| {
            assert_eq!(numbers(&ours), expected);
            assert_eq!(gradient(&model, &ours), slopes);
        };
        let ids = || batch.ids.clone();
        let tensors = TokenTensors::from(&batch);
        let (ours, by_token, with_statistics, of_tensors) = if by_logits {
            (
                batch.log_probs(&model, Model::logits),
                batch.token_log_probs(model.logits(ids())),
                batch.token_log_probs(WithStatistics(model.logits(ids()))),
                tensors.log_probs(&model, Model::logits),
            )
        } else {
            (
                batch.log_probs(&model, Model::hidden),
                batch.token_log_probs(model.hidden(ids())),
                batch.token_log_probs(WithStatistics(model.hidden(ids()))),
                tensors.log_probs(&model, Model::hidden),
            )
        };
        check(ours.unwrap());
        check(of_tensors.unwrap());
        let by_token = by_token.unwrap();
        assert_eq!(to_vec(by_token.log_probs()), to_vec(tokens.log_probs()));
        check(by_token.sequence());
        let (log_probs, statistics) = with_statistics.unwrap();
        check(log_probs.sequence());
        let logits = WithStatistics(model.logits(ids()));
        let mask = batch.completion_mask.clone();
        let (_, expected) = TokenLogProbs::from_output(logits, ids(), mask).unwrap();
        assert_eq!(to_vec(statistics.top1()), to_vec(expected.top1()));
    }
}

/// Nothing but products of other shapes is between packed rows and padded ones: rows that a model
/// finds equal are equal.
#[test]
fn packed_rows() {
    let model = Model::new(1);
    let batch = packed();
    assert_eq!(batch.ids.dims(), [2, 11]);
    // The same hidden states, row by row, as a padded batch.
    let (hidden, head) = model.packed_hidden(&batch);
    let unpacked = batch.unpack(hidden).unwrap();
    let padded = &batch.unpacked;
    let expected = padded.token_log_probs((unpacked.clone(), head)).unwrap();
    let ours = batch.log_probs(&model, Model::packed_hidden).unwrap();
    assert_eq!(numbers(&ours), numbers(&expected.sequence()));
    let expected = padded.token_log_probs(model.head.forward(unpacked));
    let ours = batch.log_probs(&model, Model::packed_logits).unwrap();
    assert_eq!(numbers(&ours), numbers(&expected.unwrap().sequence()));
    let logits = model.packed_logits(&batch);
    let by_token = batch.token_log_probs(logits.clone()).unwrap();
    assert_eq!(numbers(&by_token.sequence()), numbers(&ours));
    let (with_statistics, _) = batch.token_log_probs(WithStatistics(logits)).unwrap();
    assert_eq!(numbers(&with_statistics.sequence()), numbers(&ours));
}

/// One training step for whatever answers for the reference, by whatever the model returns.
fn relative<R: Reference<Model>, O: ModelOutput>(
    batch: &TokenBatch,
    policy: &Model,
    reference: &R,
    forward: impl Fn(&Model, Tensor<2, Int>) -> O,
) -> Result<RelativeLogProbs, R::Error> {
    let ours = batch.log_probs(policy, &forward)?;
    Ok(ours.relative_to(batch.reference(reference, &forward)?)?)
}

#[test]
fn a_reference_that_is_frozen_or_cached() {
    let (policy, frozen) = (Model::new(1), Frozen::new(&Model::new(2)));
    let expected = primitive(&policy, false)
        .sequence()
        .relative_to(primitive(frozen.model(), false).sequence())
        .unwrap();
    let slopes = gradient(&policy, expected.policy());
    let dir = tempfile::tempdir().unwrap();
    let fingerprint = Fingerprint::of(frozen.model()).unwrap();
    let mut cache = ReferenceCache::open(dir.path(), fingerprint).unwrap();
    // Of the same batch, so that products have the same shape.
    let theirs = padded().reference(&frozen, Model::hidden).unwrap();
    cache.insert(&sequences(), &theirs).unwrap();
    cache.flush().unwrap();
    for device in [device(), device().autodiff()] {
        let batch = TokenBatch::new(sequences(), Padding::new(0), &device).unwrap();
        let by_model = relative(&batch, &policy, &frozen, Model::hidden).unwrap();
        let by_cache = relative(&batch, &policy, &cache, Model::hidden).unwrap();
        let tokens = batch.token_log_probs(frozen.model().hidden(batch.ids.clone()));
        let ours = batch
            .token_log_probs(policy.hidden(batch.ids.clone()))
            .unwrap();
        let by_token = ours.relative_to(tokens.unwrap()).unwrap().sequence();
        for relative in [by_model, by_cache, by_token] {
            assert_eq!(to_vec(relative.log_ratio()), to_vec(expected.log_ratio()));
            assert!(!relative.reference().sum().is_autodiff());
            assert_eq!(gradient(&policy, relative.policy()), slopes);
        }
    }
    let packed = packed();
    let never = |_: &Model, _: &PackedBatch| -> Tensor<3> { panic!("a cache calls no model") };
    let by_cache = packed.reference(&cache, never).unwrap();
    assert_eq!(numbers(&by_cache), numbers(&theirs));
    // By logits and by hidden states, the same model.
    let by_logits = packed.reference(&frozen, Model::packed_logits).unwrap();
    let model = frozen.model();
    let expected = packed.log_probs(model, Model::packed_logits).unwrap();
    assert_eq!(numbers(&by_logits), numbers(&expected));
}

#[test]
fn errors_pass_through() {
    let (batch, packed) = (padded(), packed());
    let frozen = Frozen::new(&Model::new(2));
    let wrong = |_: &Model, ids: Tensor<2, Int>| {
        let [rows, time] = ids.dims();
        Tensor::<3>::zeros([rows, time + 1, VOCAB], &ids.device())
    };
    let error: InvalidInput = batch.log_probs(frozen.model(), wrong).unwrap_err();
    assert_eq!(error.name(), "tokens");
    let error: InvalidInput = batch.reference(&frozen, wrong).unwrap_err();
    assert_eq!(error.name(), "tokens");
    let short = |model: &Model, batch: &PackedBatch| {
        let (hidden, head) = model.packed_hidden(batch);
        (hidden.narrow(1, 0, 5), head)
    };
    let error: InvalidInput = packed.log_probs(frozen.model(), short).unwrap_err();
    assert_eq!(error.name(), "hidden");
    let error: InvalidInput = packed.reference(&frozen, short).unwrap_err();
    assert_eq!(error.name(), "hidden");

    let dir = tempfile::tempdir().unwrap();
    let cache = ReferenceCache::open(dir.path(), Fingerprint::of(frozen.model()).unwrap()).unwrap();
    let error = batch.reference(&cache, Model::hidden).unwrap_err();
    assert!(matches!(error, CacheError::Missing { index: 0 }), "{error}");
    let error = packed.reference(&cache, Model::packed_hidden).unwrap_err();
    assert!(matches!(error, CacheError::Missing { index: 0 }), "{error}");
    let error = Error::from(error);
    assert!(matches!(error, Error::Cache(_)), "{error}");
}

fn policy_log_probs(batch: &TokenBatch) -> SequenceLogProbs {
    batch.log_probs(&Model::new(1), Model::hidden).unwrap()
}

#[test]
fn pairs_of_rows() {
    let pair = |p: u32, n: usize| Example::pair(vec![p], vec![5; n], vec![6; n + 1]);
    let batch: PairTokens =
        Collator::new(Padding::new(0)).batch(vec![pair(1, 1), pair(2, 3)], &device());
    let log_probs = policy_log_probs(&batch.tokens);
    let ours = batch.pair(log_probs.clone()).unwrap();
    let expected = Pair::from_concatenated(&log_probs).unwrap();
    for (ours, expected) in [
        (ours.chosen, expected.chosen),
        (ours.rejected, expected.rejected),
    ] {
        assert_eq!(numbers(&ours), numbers(&expected));
    }
    let hidden = Model::new(1).hidden(batch.tokens.ids.clone());
    let tokens = batch.tokens.token_log_probs(hidden);
    let tokens = batch.pair(tokens.unwrap()).unwrap();
    assert_eq!(tokens.chosen.mask().dims(), [2, 4]);
    let column = batch.pair(log_probs.lengths()).unwrap();
    assert_eq!(to_vec(column.rejected), [2.0, 4.0]);

    // Rows of another batch: an even number of them is not enough.
    let fewer = Pair::from_concatenated(&log_probs).unwrap().chosen;
    let error = batch.pair(fewer).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`rows`: expected 4, one per row of the batch, found 2"
    );
    let none: PairTokens = Collator::new(Padding::new(0)).batch(vec![], &device());
    let none = none.pair(Tensor::<1>::zeros([0], &device())).unwrap();
    assert_eq!(none.chosen.dims(), [0]);
}

#[test]
fn unpaired_completions_and_lists_of_rows() {
    let unpaired = |p: u32, up: bool| Example::unpaired(vec![p], vec![5, 6], up);
    let unpaired = InMemDataset::new(vec![
        unpaired(1, true),
        unpaired(2, false),
        unpaired(3, true),
    ]);
    let unpaired = Mismatched::new(unpaired, Truncation::Drop { max_length: 9 });
    let unpaired = unpaired.iter().collect::<Result<_, _>>().unwrap();
    let batch: UnpairedTokens<WithMismatched> =
        Collator::new(Padding::new(0)).batch(unpaired, &device());
    let log_probs = policy_log_probs(&batch.tokens);
    let ours = batch.unpaired(log_probs.clone()).unwrap();
    let expected = Unpaired::new(log_probs.clone(), batch.desirable.clone()).unwrap();
    assert_eq!(numbers(ours.log_probs()), numbers(expected.log_probs()));
    let up: Vec<bool> = ours.desirable().into_data().iter().collect();
    assert_eq!(up, [true, false, true]);
    assert_eq!(batch.mismatched().len(), 3);
    let two = SequenceLogProbs::from_values(&[-1.0; 2], &[2; 2], &device()).unwrap();
    assert_eq!(batch.unpaired(two.clone()).unwrap_err().name(), "desirable");

    let list = Example::ranked(vec![1], vec![vec![2], vec![3, 4]], vec![0.5, 1.0]).unwrap();
    let other = Example::ranked(vec![1], vec![vec![4]], vec![2.0]).unwrap();
    let batch: RankedTokens = Collator::new(Padding::new(0)).batch(vec![list, other], &device());
    let log_probs = policy_log_probs(&batch.tokens);
    let ours = batch.ranked(log_probs.clone()).unwrap();
    let candidates = log_probs.split_candidates(2).unwrap();
    let expected = Ranked::new(candidates, batch.scores.clone(), batch.present.clone()).unwrap();
    assert_eq!(
        to_vec(ours.candidates().sum()),
        to_vec(expected.candidates().sum())
    );
    assert_eq!(to_vec(ours.scores()), [0.5, 1.0, 2.0, 0.0]);
    assert_eq!(batch.ranked(two).unwrap_err().name(), "scores");
}

/// A dataset's error is one of a whole program's.
#[test]
fn a_dataset_that_fails() {
    let alone = InMemDataset::new(vec![Example::unpaired(vec![1], vec![2], true)]);
    let alone = Mismatched::new(alone, Truncation::Drop { max_length: 9 });
    let read = || -> Result<Vec<_>, Error> { Ok(alone.iter().collect::<Result<_, _>>()?) };
    assert!(matches!(read(), Err(Error::Data(_))));
}

/// Ids on the training device, a closure that asks: a frozen model sees none of it.
#[test]
fn a_frozen_model_gets_plain_ids() {
    let device: Device = device().autodiff();
    let batch = TokenBatch::new(sequences(), Padding::new(0), &device).unwrap();
    let frozen = Frozen::new(&Model::new(2));
    let theirs = batch.reference(&frozen, |model, ids| {
        assert!(!ids.device().is_autodiff());
        model.logits(ids)
    });
    assert!(!theirs.unwrap().sum().device().is_autodiff());
}
