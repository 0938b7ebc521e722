//! Bad input: what bytes can be turned into, every entry point is called with, and what has to hold
//! of the answer. The targets in `fuzz/` and `tests/suite/bad_input.rs` share these functions.

use std::fmt::{Debug, Display};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::{Dataset, InMemDataset};
use burn::nn::LinearConfig;
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use burn_preference::config::ObjectiveConfig;
use burn_preference::data::{
    Collator, Content, Cursor, Demonstration, DemonstrationFormat, DemonstrationTokens, Desirable,
    Encode, Encoded, Example, Format, Json, JsonLines, Labels, OnError, PairFormat, PairTokens,
    ParquetFile, Preference, PromptFormat, RankedFormat, RankedTokens, SampleFormat, SampleTokens,
    Scores, TokenizeOptions, Tokenized, Truncation, Turns, UnpairedFormat, UnpairedTokens,
};
use burn_preference::log_probs::{Discrepancy, TokenDiscrepancy, WithStatistics};
use burn_preference::modifier::wpo_weights;
use burn_preference::reference::cache::{Fingerprint, ReferenceCache};
use burn_preference::tokens::Padding;
use burn_preference::training::state::{MovingAverage, RunningMean};
use burn_preference::{
    GroupedReward, GrpoLossConfig, InvalidHyperparameter, InvalidInput, LmHead, Objective, Pair,
    PolicyPair, Ranked, ReferenceSchedule, Samples, Scored, SequenceLogProbs, TokenLogProbs,
    Unpaired, WithBaseline, WithMargin, WithMeanMargin, WithNll, WithPreference, WithScores,
    WithSequenceKl, WithShift, WithTies, WithValue, WithWeights,
};
use serde::{Serialize, de::DeserializeOwned};

/// A target: fails by panicking.
pub type Target = fn(&[u8]);

/// Every target, by the name of its binary and its corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("config", config),
    ("log_probs", |data| run(data, log_probs)),
    ("batches", |data| run(data, batches)),
    ("objectives", |data| run(data, objectives)),
    ("files", files),
    ("parquet", parquet),
];

/// The target of a name.
pub fn target(name: &str) -> Target {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    found.expect("a name of the list").1
}

fn run(data: &[u8], target: fn(&mut Unstructured) -> Result<()>) {
    // Bytes that end too early are no input.
    let _ = target(&mut Unstructured::new(data));
}

fn says_something(error: &InvalidInput) {
    let parts = [error.name(), error.expected(), error.found()];
    assert!(parts.iter().all(|part| !part.is_empty()), "{error:?}");
    assert!(error.to_string().contains(error.name()), "{error}");
}

fn names_its_value(error: &InvalidHyperparameter) {
    assert!(!error.name().is_empty() && !error.allowed().is_empty());
    assert!(error.to_string().contains(error.name()), "{error}");
}

// ---------------------------------------------------------------- data and cache files

/// The first byte says what the others are: a data file of some format, a saved position, or a
/// segment of a cache.
fn files(bytes: &[u8]) {
    let Some((kind, content)) = bytes.split_first() else {
        return;
    };
    let dir = tempfile::tempdir().expect("a temporary directory");
    if let Ok(json) = serde_json::from_slice::<Json>(content) {
        let written = json.to_string();
        let again: Json = serde_json::from_str(&written).expect("what was written can be read");
        assert_eq!(again, json, "{written}");
        assert_eq!(again.to_string(), written, "fields keep their order");
    }
    // The corpus was found when there were five kinds.
    let kind = if matches!(kind, 5 | 6) {
        *kind
    } else {
        kind % 5
    };
    match kind {
        0 => rows(dir.path(), content, PairFormat::default()),
        1 => rows(dir.path(), content, UnpairedFormat::default()),
        2 => rows(dir.path(), content, RankedFormat::default()),
        5 => rows(dir.path(), content, DemonstrationFormat::default()),
        6 => groups(content),
        3 => {
            let none = Arc::new(InMemDataset::new(vec![0_u8; 3]));
            if let Ok(mut cursor) = serde_json::from_slice::<Cursor>(content) {
                let left = cursor.remaining(&none).map(|rows| rows.len());
                assert!(left.is_err() || left.unwrap() <= 3);
                cursor.advance(1);
                let _ = cursor.remaining(&none);
            }
        }
        _ => {
            let model = LinearConfig::new(1, 1)
                .with_bias(false)
                .init(&Device::flex());
            let fingerprint = Fingerprint::of(&model).expect("the device works");
            let cache = ReferenceCache::open(dir.path(), fingerprint).expect("new");
            let path = cache.directory().join("x.bpk");
            fs::write(&path, content).expect("a file");
            let error = ReferenceCache::open(dir.path(), fingerprint).unwrap_err();
            // No bytes have the hash that is their name.
            assert!(error.to_string().contains("x.bpk"), "{error}");
        }
    }
}

/// A Parquet file has rows, and each value of one is JSON or says why it is not; or it is refused by
/// an error that names it. A panic of the crate that reads it is such an error, too.
fn parquet(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("rows.parquet");
    fs::write(&path, bytes).expect("a file");
    let names_it = |error: &dyn Display| {
        assert!(error.to_string().contains("rows.parquet"), "{error}");
    };
    match ParquetFile::new(&path, ()).raw() {
        Ok(rows) => {
            let mut last = 0;
            // Any number of rows may be said by a few bytes: those are read that a file of this
            // size is likely to have.
            for row in rows.take(bytes.len()) {
                match row {
                    Ok((line, row)) => {
                        assert!(line > last, "{line} after {last}");
                        last = line;
                        for (name, value) in row.iter() {
                            let says = |text: &str| !text.is_empty();
                            assert!(
                                !matches!(value, Json::NotJson(text) if !says(text)),
                                "{name}"
                            );
                        }
                    }
                    Err(error) => names_it(&error),
                }
            }
        }
        Err(error) => names_it(&error),
    }
    let pairs = ParquetFile::new(&path, PairFormat::default()).read();
    for error in pairs
        .into_iter()
        .flat_map(|rows| rows.take(300))
        .filter_map(Result::err)
    {
        names_it(&error);
    }
}

/// A row of samples is a group whose samples are a batch, or an error that names a field.
fn groups(content: &[u8]) {
    let Ok(Json::Object(row)) = serde_json::from_slice(content) else {
        return;
    };
    match SampleFormat::default().parse(row) {
        Ok(group) => {
            let samples = Example::samples(&[group]).expect("the format has checked it");
            let rows = samples.len();
            let batch: SampleTokens =
                Collator::new(Padding::new(0)).batch(samples, &Device::flex());
            assert_eq!(batch.sampler.dims()[0], rows);
        }
        Err(error) => assert!(!error.field().is_empty() && !error.expected().is_empty()),
    }
}

/// Every row is one or an error that names its file, however it is read; tokens of it are a batch.
fn rows<F: Format + Clone>(dir: &Path, content: &[u8], format: F)
where
    F::Label: Labels,
    Collator: Collate<F::Label>,
{
    let path = dir.join("rows.jsonl");
    fs::write(&path, content).expect("a file");
    let file = JsonLines::new(&path, format)
        .with_max_line_bytes(400)
        .expect("a limit");
    let mut whole = Vec::new();
    let mut errors = 0;
    for row in file.clone().read().expect("it can be opened") {
        match row {
            Ok(row) => whole.push(row),
            Err(error) => {
                assert!(error.to_string().contains("rows.jsonl"), "{error}");
                errors += 1;
            }
        }
    }
    if let Ok(loaded) = file.clone().load(OnError::Skip) {
        assert_eq!(loaded.examples, whole);
        assert_eq!(loaded.skipped.len(), errors);
    }
    assert!(errors == 0 || file.clone().load(OnError::Stop).is_err());
    let raw = file.clone().raw().expect("it can be opened");
    let lines: Vec<_> = raw.flatten().map(|(line, _)| line).collect();
    assert!(lines.len() >= whole.len());
    let prompts = JsonLines::new(&path, PromptFormat::default());
    let prompts = prompts.read().expect("it can be opened").flatten();
    assert!(prompts.into_iter().all(|it| it.completions().is_empty()));
    assert!(
        whole
            .iter()
            .all(|it| lines.contains(&it.line.expect("of a file")))
    );
    if let Ok(random) = file.open() {
        let rows = (0..random.len()).filter_map(|i| random.example(i).ok());
        assert!(rows.eq(whole.iter().cloned()));
    }
    for row in &whole {
        for text in std::iter::once(&row.prompt).chain(row.completions()) {
            let is_plain = text.as_plain().is_some();
            assert_eq!(
                is_plain,
                row.prompt.as_plain().is_some(),
                "no row mixes them"
            );
        }
    }
    // What the bytes say of the tokenizer: marks or none, turns that it writes again or not.
    let style = content.last().copied().unwrap_or_default();
    let truncation = Truncation::PromptMiddleThenCompletionStart {
        min_prompt: 3,
        max_length: 6,
    };
    let turns = [Turns::Assistant, Turns::Last, Turns::All][usize::from(style % 3)];
    let options = TokenizeOptions::new(truncation)
        .with_turns(turns)
        .with_on_error(OnError::Skip);
    let tokenizer = |text: Encode<'_>| ids_of(text, style);
    let texts = InMemDataset::new(whole);
    let tokens = Tokenized::new(texts, tokenizer, options).expect("rows are skipped");
    let report = tokens.report();
    assert_eq!(report.kept + report.dropped.len(), tokens.texts().len());
    assert!(report.to_string().contains("kept"));
    let items: Vec<_> = tokens.iter().map(|item| item.expect("kept")).collect();
    assert_eq!(items.len(), report.kept);
    for sequence in items.iter().flat_map(Example::sequences) {
        assert!(sequence.ids().len() <= 6);
        assert!(sequence.length() > 0, "something counts");
    }
    Collator::new(Padding::new(0)).rows(items);
}

/// A tokenizer of a fuzzed style: a token a byte or a turn, with marks that may not fit.
fn ids_of(text: Encode<'_>, style: u8) -> std::result::Result<Encoded, String> {
    let mut ids: Vec<u32> = match text.content {
        Content::Plain(text) => text.bytes().map(u32::from).collect(),
        Content::Conversation(messages) => {
            let last = messages.len();
            let turn = |(place, message): (usize, &burn_preference::data::Message)| {
                let said = message.text().unwrap_or_default().len();
                // Some styles leave out what was said before the last turn.
                let shown = if style & 8 != 0 && place + 1 < last {
                    0
                } else {
                    said
                };
                let mut turn = vec![300, u32::try_from(message.role.len()).unwrap_or(0)];
                turn.extend(vec![7; shown.min(9)]);
                turn.push(301);
                turn
            };
            messages.iter().enumerate().flat_map(turn).collect()
        }
    };
    if text.tools.is_some() {
        ids.insert(0, 400);
    }
    if !text.chat_template_kwargs.is_empty() {
        ids.push(401);
    }
    match (text.add_generation_prompt, text.content) {
        (true, Content::Conversation(_)) => ids.extend([300, 9]),
        (true, Content::Plain(_)) => {}
        (false, _) => ids.push(302),
    }
    match style & 0x30 {
        0x10 => {
            let marks = ids.iter().map(|id| id % 2 == 0).collect();
            Ok((ids, marks).into())
        }
        0x20 if style & 0x40 != 0 => Ok((ids, vec![true; 3]).into()),
        0x30 if ids.len() > 20 => Err("too much for this tokenizer".into()),
        _ => Ok(ids.into()),
    }
}

/// The batcher of a label, whatever its batch is called.
trait Collate<L> {
    fn rows(&self, items: Vec<Example<Vec<u32>, L>>);
}

macro_rules! collate {
    ($($label:ty => $batch:ty),*) => {
        $(
            impl Collate<$label> for Collator {
                fn rows(&self, items: Vec<Example<Vec<u32>, $label>>) {
                    let batch: $batch = self.batch(items, &Device::flex());
                    let [rows, _] = batch.tokens.ids.dims();
                    assert_eq!(rows, batch.tokens.len());
                }
            }
        )*
    };
}

collate!(
    Preference => PairTokens, Desirable => UnpairedTokens, Scores => RankedTokens,
    Demonstration => DemonstrationTokens
);

// ---------------------------------------------------------------- config files

/// What a file says is refused with a message, or builds, or names the value that does not.
fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    parsed::<ObjectiveConfig>(text, |c| c.check().err());
    parsed::<ReferenceSchedule>(text, |_| None);
    parsed::<MovingAverage>(text, |_| None);
    parsed::<RunningMean>(text, |_| None);
}

fn parsed<C: DeserializeOwned + Serialize + PartialEq + Debug>(
    text: &str,
    refused: impl Fn(&C) -> Option<InvalidHyperparameter>,
) {
    match serde_json::from_str::<C>(text) {
        Ok(config) => {
            if let Some(error) = refused(&config) {
                names_its_value(&error);
            }
            let saved = serde_json::to_string(&config).expect("what was read can be written");
            let again: C = serde_json::from_str(&saved).expect("what was written can be read");
            assert_eq!(again, config, "{saved}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

// ---------------------------------------------------------------- tensors

/// The test device, or now and then another one.
fn device(u: &mut Unstructured) -> Result<Device> {
    #[expect(deprecated, reason = "supported while it exists")]
    let elsewhere = Device::ndarray();
    Ok(if u.ratio(1, 40)? {
        elsewhere
    } else {
        Device::flex()
    })
}

/// `size`, or now and then another one.
fn about(u: &mut Unstructured, size: usize) -> Result<usize> {
    if u.ratio(1, 40)? {
        u.int_in_range(0..=5)
    } else {
        Ok(size)
    }
}

/// Mostly log-probs and logits, sometimes what no model returns.
fn number(u: &mut Unstructured) -> Result<f64> {
    Ok(match u.int_in_range(0..=19)? {
        0 => f64::NAN,
        1 => f64::NEG_INFINITY,
        2 => f64::INFINITY,
        3 => f64::from(f32::arbitrary(u)?),
        4 => -1e30,
        5 => 0.0,
        _ => f64::from(u.int_in_range(-4000..=4000)?) / 100.0,
    })
}

fn numbers(u: &mut Unstructured, count: usize) -> Result<Vec<f64>> {
    (0..count).map(|_| number(u)).collect()
}

fn floats<const D: usize>(
    u: &mut Unstructured,
    shape: [usize; D],
    dtype: DType,
) -> Result<Tensor<D>> {
    let values = numbers(u, shape.iter().product())?;
    let device = device(u)?;
    let half = matches!(dtype, DType::F16 | DType::BF16);
    // NdArray has no half precision.
    let device = if half { Device::flex() } else { device };
    Ok(Tensor::from_data(
        TensorData::new(values, shape),
        (&device, dtype),
    ))
}

fn bools<const D: usize>(u: &mut Unstructured, shape: [usize; D]) -> Result<Tensor<D, Bool>> {
    let values: Vec<bool> = (0..shape.iter().product())
        .map(|_| u.arbitrary())
        .collect::<Result<_>>()?;
    let device = device(u)?;
    Ok(Tensor::from_data(TensorData::new(values, shape), &device))
}

/// Every integer type that Flex has.
pub const INTEGERS: [DType; 8] = [
    DType::I64,
    DType::I32,
    DType::I16,
    DType::I8,
    DType::U64,
    DType::U32,
    DType::U16,
    DType::U8,
];

/// Ids, most of them in a vocabulary of `vocab` words, in any number type that Flex has.
fn ids<const D: usize>(
    u: &mut Unstructured,
    shape: [usize; D],
    vocab: usize,
) -> Result<Tensor<D, Int>> {
    let dtype = *u.choose(&INTEGERS)?;
    let values: Vec<i64> = (0..shape.iter().product())
        .map(|_| {
            Ok(match u.int_in_range(0..=19)? {
                0 if matches!(dtype, DType::I64 | DType::I32 | DType::I16 | DType::I8) => -1,
                1 => vocab as i64,
                2 => i64::from(i8::arbitrary(u)?.max(0)),
                _ => u.int_in_range(0..=vocab.max(1) - 1)? as i64,
            })
        })
        .collect::<Result<_>>()?;
    let device = device(u)?;
    Ok(Tensor::from_data(
        TensorData::new(values, shape),
        (&device, dtype),
    ))
}

fn float_type(u: &mut Unstructured) -> Result<DType> {
    Ok(*u.choose(&[DType::F32, DType::F64, DType::F32, DType::F16, DType::BF16])?)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

// ---------------------------------------------------------------- log-probs

/// Logits or hidden states, ids and masks of any shape: an error, or what the definition says.
fn log_probs(u: &mut Unstructured) -> Result<()> {
    let [batch, time, vocab] = [
        u.int_in_range(0..=3)?,
        u.int_in_range(0..=5)?,
        u.int_in_range(0..=7)?,
    ];
    let dtype = float_type(u)?;
    let (tokens_time, mask_batch) = (about(u, time)?, about(u, batch)?);
    let tokens = ids(u, [batch, tokens_time], vocab)?;
    let mask = bools(u, [mask_batch, time])?;
    match TokenLogProbs::check_tokens(&tokens, &mask, vocab) {
        Ok(()) => {}
        Err(error) => says_something(&error),
    }

    let from_logits = u.arbitrary()?;
    let statistics = u.arbitrary()?;
    let (logits, found) = if from_logits {
        let logits = floats(u, [batch, time, vocab], dtype)?;
        let found = if statistics {
            TokenLogProbs::from_output(WithStatistics(logits.clone()), tokens.clone(), mask.clone())
                .map(|(log_probs, _)| log_probs)
        } else {
            TokenLogProbs::from_output(logits.clone(), tokens.clone(), mask.clone())
        };
        let other_batch = about(u, batch)?;
        let other = floats(u, [other_batch, time, vocab], dtype)?;
        let kinds = [
            Discrepancy::ForwardKl,
            Discrepancy::ReverseKl,
            Discrepancy::JensenShannon(0.3),
            Discrepancy::JensenShannon(1.0),
        ];
        let kind = *u.choose(&kinds)?;
        match TokenDiscrepancy::from_outputs(kind, logits.clone(), other, mask.clone()) {
            Ok(found) => {
                assert_eq!(found.sums().dims(), [batch]);
                assert_eq!(found.values().dims(), [batch, time - 1]);
            }
            Err(error) => says_something(&error),
        }
        (logits, found)
    } else {
        let width = u.int_in_range(0..=4)?;
        let hidden = floats(u, [batch, time, width], dtype)?;
        let words_first = u.arbitrary()?;
        let shape = if words_first {
            [vocab, about(u, width)?]
        } else {
            [about(u, width)?, vocab]
        };
        let weight_dtype = if u.ratio(1, 40)? { DType::F64 } else { dtype };
        let weight = floats(u, shape, weight_dtype)?;
        let mut head = if words_first {
            LmHead::new(weight)
        } else {
            LmHead::transposed(weight)
        };
        if u.arbitrary()? {
            let words = about(u, vocab)?;
            head = head.with_bias(floats(u, [words], dtype)?);
        }
        let head = head.with_retained_bytes(u.arbitrary()?);
        let found = TokenLogProbs::from_output(
            (hidden.clone(), head.clone()),
            tokens.clone(),
            mask.clone(),
        );
        let same = || (hidden.clone(), head.clone());
        for kind in [Discrepancy::ReverseKl, Discrepancy::JensenShannon(0.3)] {
            match TokenDiscrepancy::from_outputs(kind, same(), same(), mask.clone()) {
                Ok(found) => {
                    let values = values(found.values());
                    let is_zero = |x: &f64| x.abs() < 1e-12 || x.is_nan();
                    assert!(values.iter().all(is_zero), "{values:?}");
                }
                Err(error) => says_something(&error),
            }
        }
        // What the values are is the business of `tests/suite/head.rs`.
        (Tensor::zeros([0, 0, 0], &Device::flex()), found)
    };

    let log_probs = match found {
        Ok(log_probs) => log_probs,
        Err(error) => {
            says_something(&error);
            return Ok(());
        }
    };
    assert!(time >= 2 && vocab >= 1, "nothing to predict");
    assert_eq!(log_probs.log_probs().dims(), [batch, time - 1]);
    let sequence = log_probs.sequence();
    assert_eq!(sequence.sum().dims(), [batch]);
    assert!(matches!(sequence.sum().dtype(), DType::F32 | DType::F64));

    let logits = from_logits.then(|| values(logits));
    columns_are_right(&log_probs, logits.as_deref(), tokens, mask, vocab);

    let part_batch = about(u, batch)?;
    let part = bools(u, [part_batch, time])?;
    match log_probs.restrict(part) {
        Ok(restricted) => assert_eq!(restricted.log_probs().dims(), [batch, time - 1]),
        Err(error) => says_something(&error),
    }
    Ok(())
}

/// Every column of log-probs against the definition, of which hidden states leave only the signs.
fn columns_are_right(
    log_probs: &TokenLogProbs,
    logits: Option<&[f64]>,
    tokens: Tensor<2, Int>,
    mask: Tensor<2, Bool>,
    vocab: usize,
) {
    let [batch, time] = tokens.dims();
    let ids: Vec<i64> = tokens.into_data().iter::<i64>().collect();
    let counted: Vec<bool> = mask.into_data().iter::<bool>().collect();
    let lengths = values(log_probs.sequence().lengths());
    let ours = values(log_probs.log_probs());
    for b in 0..batch {
        let mut length = 0.0;
        for t in 0..time - 1 {
            let (value, next) = (ours[b * (time - 1) + t], b * time + t + 1);
            if !counted[next] {
                assert_eq!(value, 0.0, "a token that does not count");
                continue;
            }
            length += 1.0;
            let row = logits.map(|logits| &logits[(b * time + t) * vocab..][..vocab]);
            match (usize::try_from(ids[next]), row) {
                (Ok(id), Some(row)) if id < vocab => {
                    let expected = log_softmax(row, id);
                    let close = (value - expected).abs() <= 1e-4 * (1.0 + expected.abs());
                    let same = value == expected || value.is_nan() && expected.is_nan();
                    assert!(close || same, "{value} instead of {expected} of {row:?}");
                }
                (Ok(id), None) if id < vocab => assert!(value.is_nan() || value <= 1e-3),
                _ => assert!(value.is_nan(), "{value} for the id {}", ids[next]),
            }
        }
        assert_eq!(lengths[b], length);
    }
}

fn log_softmax(row: &[f64], id: usize) -> f64 {
    if row.iter().any(|x| x.is_nan()) {
        return f64::NAN;
    }
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    row[id] - max - row.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

// ---------------------------------------------------------------- batches

/// Whether a constructor took what fits, and refused by name what does not.
fn fits<T>(found: std::result::Result<T, InvalidInput>, fits: bool) -> Option<T> {
    match found {
        Ok(found) => {
            assert!(fits, "taken, but does not fit");
            Some(found)
        }
        Err(error) => {
            assert!(!fits, "{error}");
            says_something(&error);
            None
        }
    }
}

fn sequence(u: &mut Unstructured, rows: usize, dtype: DType) -> Result<Option<SequenceLogProbs>> {
    let lengths = about(u, rows)?;
    let sum = floats(u, [rows], dtype)?;
    let lengths: Vec<usize> = (0..lengths)
        .map(|_| u.int_in_range(0..=9))
        .collect::<Result<_>>()?;
    let ok = sum.dims() == [lengths.len()];
    Ok(fits(SequenceLogProbs::new(sum, &lengths), ok))
}

/// Batches and columns of any shape, on any device.
fn batches(u: &mut Unstructured) -> Result<()> {
    let rows = u.int_in_range(0..=4)?;
    let dtype = float_type(u)?;
    let other = if u.ratio(1, 10)? {
        float_type(u)?
    } else {
        dtype
    };
    let (other_rows, reference_rows) = (about(u, rows)?, about(u, rows)?);
    let (Some(chosen), Some(rejected)) =
        (sequence(u, rows, dtype)?, sequence(u, other_rows, other)?)
    else {
        return Ok(());
    };
    let place = |y: &SequenceLogProbs| (y.sum().dims(), y.sum().device());
    let here = place(&chosen);

    match SequenceLogProbs::from_values(&[-1.0; 3], &vec![1; u.int_in_range(2..=4)?], &here.1) {
        Ok(values) => assert_eq!(values.sum().dims(), [3]),
        Err(error) => says_something(&error),
    }
    let even = rows.is_multiple_of(2);
    fits(PolicyPair::from_concatenated(&chosen), even);

    let candidates = u.int_in_range(0..=4)?;
    let divides = candidates > 0 && rows.is_multiple_of(candidates.max(1));
    if let Some(lists) = fits(chosen.clone().split_candidates(candidates), divides) {
        let shape = [rows / candidates, candidates];
        let (scores, present) = (floats(u, shape, other)?, bools(u, shape)?);
        let ok = scores.device() == here.1 && present.device() == here.1;
        fits(Ranked::new(lists, scores, present), ok);
    }

    let labels = about(u, rows)?;
    let labels = bools(u, [labels])?;
    let ok = (labels.dims(), labels.device()) == here;
    fits(Unpaired::new(chosen.clone(), labels), ok);

    let same_type = chosen.sum().dtype() == rejected.sum().dtype();
    let ok = here == place(&rejected) && same_type;
    let Some(pair) = fits(PolicyPair::new(chosen, rejected), ok) else {
        return Ok(());
    };
    let (Some(ref_chosen), Some(ref_rejected)) = (
        sequence(u, reference_rows, other)?,
        sequence(u, reference_rows, dtype)?,
    ) else {
        return Ok(());
    };
    let alike = place(&ref_chosen) == place(&ref_rejected)
        && ref_chosen.sum().dtype() == ref_rejected.sum().dtype();
    let ok = place(&ref_chosen) == here;
    let Some(reference) = fits(PolicyPair::new(ref_chosen, ref_rejected), alike) else {
        return Ok(());
    };
    let Some(batch) = fits(pair.clone().relative_to(reference), ok) else {
        return Ok(());
    };

    let column = |u: &mut Unstructured, length: usize| {
        let length = about(u, length)?;
        let column = floats(u, [length], other)?;
        Ok::<_, arbitrary::Error>((column.clone(), (column.dims(), column.device())))
    };
    let scalar = ([1], here.1.clone());
    let (values, at) = column(u, rows)?;
    fits(WithMargin::new(batch.clone(), values.clone()), at == here);
    fits(
        WithPreference::new(batch.clone(), values.clone()),
        at == here,
    );
    fits(WithWeights::new(batch.clone(), values.clone()), at == here);
    fits(WithValue::new(batch.clone(), values.clone()), at == here);
    fits(
        Scored::new(batch.chosen.clone(), values.clone()),
        at == here,
    );
    let (more, more_at) = column(u, rows)?;
    if let Some(both) = fits(Pair::new(values.clone(), more), at == more_at) {
        fits(WithScores::new(batch.clone(), both.clone()), at == here);
        fits(WithSequenceKl::new(batch.clone(), both), at == here);
    }
    fits(batch.clone().scaled_by(values), at == here);
    let (value, at) = column(u, 1)?;
    fits(
        WithBaseline::new(batch.clone(), value.clone()),
        at == scalar,
    );
    fits(WithShift::new(batch.clone(), value.clone()), at == scalar);
    fits(WithMeanMargin::new(batch.clone(), value), at == scalar);
    let tied = about(u, rows)?;
    let tied = bools(u, [tied])?;
    let ok = (tied.dims(), tied.device()) == here;
    fits(WithTies::new(batch.clone(), tied), ok);
    if let Some(nll_of) = sequence(u, rows, other)? {
        let ok = place(&nll_of) == here;
        fits(WithNll::new(batch, nll_of), ok);
    }
    tokens(u, rows)
}

/// Pairs of token log-probs, and what is done to them before they are summed.
fn tokens(u: &mut Unstructured, rows: usize) -> Result<()> {
    let side = |u: &mut Unstructured| {
        let columns = u.int_in_range(1..=4)?;
        let masked = about(u, columns)?;
        let (values, mask) = (
            floats(u, [rows, columns], DType::F32)?,
            bools(u, [rows, masked])?,
        );
        let ok = masked == columns && values.device() == mask.device();
        Ok::<_, arbitrary::Error>(fits(TokenLogProbs::new(values, mask), ok))
    };
    let (Some(chosen), Some(rejected)) = (side(u)?, side(u)?) else {
        return Ok(());
    };
    let ok = chosen.mask().device() == rejected.mask().device();
    let Some(policy) = fits(Pair::new(chosen, rejected), ok) else {
        return Ok(());
    };
    assert_eq!(policy.sequences().chosen.sum().dims(), [rows]);
    let uniform = policy.clone().with_uniform_reference();
    if let Err(error) = uniform.clone().length_desensitized(number(u)?) {
        names_its_value(&error);
    }
    if let Err(error) = uniform.clone().clamped(number(u)?, number(u)?) {
        names_its_value(&error);
    }
    let noise = |u: &mut Unstructured, like: &TokenLogProbs| {
        let [rows, columns] = like.mask().dims();
        let columns = about(u, columns)?;
        floats(u, [rows, columns], DType::F32)
    };
    let (chosen, rejected) = (noise(u, &policy.chosen)?, noise(u, &policy.rejected)?);
    let ok = chosen.device() == rejected.device();
    let Some(noise) = fits(Pair::new(chosen, rejected), ok) else {
        return Ok(());
    };
    let alike = |y: &TokenLogProbs, noise: &Tensor<2>| {
        y.mask().dims() == noise.dims() && y.mask().device() == noise.device()
    };
    let ok = alike(&policy.chosen, &noise.chosen) && alike(&policy.rejected, &noise.rejected);
    fits(uniform.clone().subsampled(&noise), ok);
    fits(uniform.weighted(noise), ok);

    let (Some(chosen), Some(rejected)) = (side(u)?, side(u)?) else {
        return Ok(());
    };
    let ok = chosen.mask().device() == rejected.mask().device();
    let Some(reference) = fits(Pair::new(chosen, rejected), ok) else {
        return Ok(());
    };
    let ok = alike(&policy.chosen, &reference.chosen.log_probs())
        && alike(&policy.rejected, &reference.rejected.log_probs());
    fits(policy.clone().relative_to(reference.clone()), ok);
    samples(u, &policy.chosen, &reference.chosen)?;
    fits(wpo_weights(&policy, &reference, Some(1.0)), ok);
    Ok(())
}

/// Samples of any rewards, groups and shapes, under an objective of them.
fn samples(u: &mut Unstructured, policy: &TokenLogProbs, sampler: &TokenLogProbs) -> Result<()> {
    let [rows, _] = policy.mask().dims();
    let rows = about(u, rows)?;
    let values = numbers(u, rows)?;
    let groups: Vec<usize> = (0..rows)
        .map(|_| u.int_in_range(0..=1))
        .collect::<Result<_>>()?;
    let single = |group: &usize| groups.iter().filter(|other| *other == group).count() == 1;
    let ok = values.iter().all(|x| x.abs() <= f64::from(f32::MAX)) && !groups.iter().any(single);
    let Some(rewards) = fits(GroupedReward::of_groups(&values, &groups), ok) else {
        return Ok(());
    };
    let (ours, theirs) = (policy.mask(), sampler.mask());
    let ok =
        ours.dims() == theirs.dims() && ours.device() == theirs.device() && rows == ours.dims()[0];
    let batch = Samples::new(policy.clone(), sampler.clone(), &rewards);
    if let Some(batch) = fits(batch, ok) {
        let losses = GrpoLossConfig::new().init().forward(batch).losses();
        assert_eq!(losses.dims(), [rows]);
    }
    Ok(())
}

// ---------------------------------------------------------------- objectives

/// Any log-probs under any objective that a file can name: a NaN that goes in comes out, and
/// nothing panics.
fn objectives(u: &mut Unstructured) -> Result<()> {
    let rows = u.int_in_range(0..=5)?;
    let dtype = *u.choose(&[DType::F32, DType::F64])?;
    let device = Device::flex();
    let sides: Vec<Vec<f64>> = (0..4).map(|_| numbers(u, rows)).collect::<Result<_>>()?;
    let lengths: Vec<usize> = (0..rows)
        .map(|_| u.int_in_range(0..=1_000_000))
        .collect::<Result<_>>()?;
    let sequence = |side: &[f64]| {
        let sum = Tensor::from_data(TensorData::from(side), (&device, dtype));
        SequenceLogProbs::new(sum, &lengths).expect("they fit")
    };
    let beta = f64::from(u.int_in_range(1..=1_000_000_000_i32)?) * 1e-6;
    let with = |config: &str, key: &str| format!(r#"{{"loss": "{config}", "{key}": {beta}}}"#);

    if u.arbitrary()? {
        let (name, key, reads_reference, per_example) = *u.choose(&PAIR_OBJECTIVES)?;
        let policy = PolicyPair::new(sequence(&sides[0]), sequence(&sides[1])).expect("they fit");
        let reference =
            PolicyPair::new(sequence(&sides[2]), sequence(&sides[3])).expect("they fit");
        let config: ObjectiveConfig =
            serde_json::from_str(&with(name, key)).expect("a key of every objective");
        let needs = &config.takes()[0];
        assert_eq!(needs.has_reference(), reads_reference, "{name}");
        assert_eq!(needs.whole_batch, !per_example, "{name}");
        let losses = if reads_reference {
            let batch = policy.relative_to(reference).expect("they fit");
            let objective = config.build().expect("inside the range");
            objective.forward(batch).losses()
        } else {
            let objective = config.build().expect("inside the range");
            objective.forward(policy).losses()
        };
        let losses = values(losses);
        let nan = |i: usize, side: usize| sides[side][i].is_nan();
        let read = if reads_reference { 4 } else { 2 };
        let spoiled = |i: usize| (0..read).any(|side| nan(i, side));
        for (i, loss) in losses.iter().enumerate() {
            if per_example && spoiled(i) {
                assert!(loss.is_nan(), "{name}: {loss}");
            }
        }
        if !per_example && (0..rows).any(spoiled) {
            assert!(
                losses.iter().any(|loss| loss.is_nan()),
                "{name}: {losses:?}"
            );
        }
    } else {
        let (name, key) = *u.choose(&LIST_OBJECTIVES)?;
        let candidates = rows.max(1);
        let lists = |side: &[f64]| {
            sequence(side)
                .split_candidates(candidates)
                .expect("one list")
        };
        let shape = [rows / candidates, candidates];
        let scores = Tensor::from_data(TensorData::new(sides[2].clone(), shape), (&device, dtype));
        let there: Vec<bool> = (0..rows).map(|_| u.arbitrary()).collect::<Result<_>>()?;
        let present = Tensor::from_data(TensorData::new(there.clone(), shape), &device);
        let config: ObjectiveConfig =
            serde_json::from_str(&with(name, key)).expect("a key of every objective");
        let losses = if config.takes()[0].has_reference() {
            let relative = lists(&sides[0])
                .relative_to(lists(&sides[1]))
                .expect("they fit");
            let batch = Ranked::new(relative, scores, present).expect("they fit");
            let objective = config.build().expect("inside the range");
            objective.forward(batch).losses()
        } else {
            let batch = Ranked::new(lists(&sides[0]), scores, present).expect("they fit");
            let objective = config.build().expect("inside the range");
            objective.forward(batch).losses()
        };
        let spoiled = (0..rows).any(|i| there[i] && (sides[0][i].is_nan() || sides[2][i].is_nan()));
        for loss in values(losses) {
            assert!(!spoiled || loss.is_nan(), "{name}: {loss}");
        }
    }
    Ok(())
}

/// Objectives over pairs: name, a key for its scale, whether it reads the reference, and whether
/// examples have losses of their own.
const PAIR_OBJECTIVES: [(&str, &str, bool, bool); 24] = [
    ("dpo", "beta", true, true),
    ("ipo", "tau", true, true),
    ("hinge", "beta", true, true),
    ("gpo", "beta", true, true),
    ("discopop", "beta", true, true),
    ("exo_pair", "beta", true, true),
    ("nca", "beta", true, true),
    ("bco", "beta", true, true),
    ("sppo", "beta", true, true),
    ("apo_zero", "beta", true, true),
    ("apo_down", "beta", true, true),
    ("dpop", "beta", true, true),
    ("rdpo", "beta", true, true),
    ("cal_dpo", "beta", true, true),
    ("aot", "beta", true, false),
    ("dpo_shift", "beta", true, true),
    ("hdpo", "entropy_weight", true, true),
    ("chipo", "beta", true, true),
    ("simpo", "beta", false, true),
    ("cpo", "beta", false, true),
    ("alpha_po", "beta", false, true),
    ("orpo", "odds_ratio_weight", false, true),
    ("slic_hf", "sft_weight", false, true),
    ("asft", "alignment_weight", false, true),
];

const LIST_OBJECTIVES: [(&str, &str); 8] = [
    ("plackett_luce", "beta"),
    ("lipo", "beta"),
    ("info_nca", "beta"),
    ("nca_list", "beta"),
    ("exo_list", "beta"),
    ("sdpo", "beta"),
    ("rrhf", "sft_weight"),
    ("pro", "sft_weight"),
];
