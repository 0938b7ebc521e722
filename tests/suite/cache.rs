//! Feature `cache`: what was flushed is there, whatever happens; what is not whole is an error.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::Tensor;
use burn_preference::reference::cache::{CacheError, Fingerprint, Progress, ReferenceCache};
use burn_preference::tokens::Sequence;
use burn_preference::{InvalidInput, SequenceLogProbs};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::support::cases;
use crate::support::device::device;

fn linear(weight: f32) -> Linear {
    let mut linear = LinearConfig::new(1, 1).init(&device());
    linear.weight = linear.weight.map(|w| w.full_like(weight));
    linear.bias = linear.bias.map(|bias| bias.map(|b| b.full_like(0.0)));
    linear
}

fn fingerprint_of(model: &Linear) -> Fingerprint {
    Fingerprint::of(model).unwrap()
}

fn fingerprint() -> Fingerprint {
    fingerprint_of(&linear(0.5))
}

fn sequence(i: u32) -> Sequence {
    Sequence::new(&[i, 1], &vec![2; i as usize % 5 + 1])
}

fn sum_of(i: u32) -> f32 {
    -(i as f32) / 3.0
}

fn values(sequences: &[Sequence]) -> Result<SequenceLogProbs, InvalidInput> {
    let sums: Vec<f32> = sequences.iter().map(|s| sum_of(s.ids()[0])).collect();
    let lengths: Vec<usize> = sequences.iter().map(Sequence::length).collect();
    SequenceLogProbs::from_values(&sums, &lengths, &device())
}

fn read(values: Tensor<1>) -> Vec<f32> {
    values.into_data().iter::<f32>().collect()
}

fn open(root: &Path) -> Result<ReferenceCache, CacheError> {
    ReferenceCache::open(root, fingerprint())
}

fn fill(cache: &mut ReferenceCache, numbers: std::ops::Range<u32>, batch: usize) -> Vec<Progress> {
    let sequences: Vec<Sequence> = numbers.map(sequence).collect();
    let mut heard = Vec::new();
    let compute = |batch: &[Sequence]| values(batch).map_err(CacheError::from);
    cache
        .fill(&sequences, batch, compute, |p| heard.push(p))
        .unwrap();
    heard
}

#[test]
fn what_is_computed_once_is_there() {
    let dir = TempDir::new().unwrap();
    let mut cache = open(dir.path()).unwrap();
    assert!(cache.is_empty());
    let heard = fill(&mut cache, 0..10, 4);
    let steps: Vec<_> = heard.iter().map(|p| (p.done, p.total)).collect();
    assert_eq!(steps, [(4, 10), (8, 10), (10, 10)]);

    // A second process, other sequences in another order, some twice: only the new are computed.
    let mut cache = open(dir.path()).unwrap();
    assert_eq!(cache.len(), 10);
    let mut computed = Vec::new();
    let order: Vec<Sequence> = [11, 3, 3, 9, 12, 0, 11].map(sequence).into();
    cache
        .fill(
            &order,
            4,
            |batch| {
                computed.extend(batch.to_vec());
                values(batch).map_err(CacheError::from)
            },
            |_| {},
        )
        .unwrap();
    assert_eq!(computed.len(), 2);
    assert!(
        computed[0].ids().len() >= computed[1].ids().len(),
        "the longest first"
    );
    let log_probs = cache.log_probs(&order, &device()).unwrap();
    assert_eq!(read(log_probs.sum()), [11, 3, 3, 9, 12, 0, 11].map(sum_of));
    assert_eq!(
        read(log_probs.lengths()),
        [2.0, 4.0, 4.0, 5.0, 3.0, 1.0, 2.0]
    );

    let absent = [sequence(3), sequence(77)];
    let error = cache.log_probs(&absent, &device()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "sequence 1 is not in the cache: fill it first"
    );
}

/// Of a row that a list lacks: nothing is computed, and nothing kept.
#[test]
fn a_sum_over_nothing_is_known() {
    let dir = TempDir::new().unwrap();
    let mut cache = open(dir.path()).unwrap();
    let sequences = [Sequence::new(&[1, 2], &[]), sequence(4)];
    let mut asked = Vec::new();
    let compute = |batch: &[Sequence]| {
        asked.extend(batch.to_vec());
        values(batch).map_err(CacheError::from)
    };
    cache.fill(&sequences, 8, compute, |_| {}).unwrap();
    assert_eq!(asked, [sequence(4)]);
    assert_eq!(cache.len(), 1);
    let found = cache.log_probs(&sequences, &device()).unwrap();
    assert_eq!(read(found.sum()), [0.0, sum_of(4)]);
    assert_eq!(read(found.lengths()), [0.0, 5.0]);
}

#[test]
fn the_prompt_is_part_of_the_key() {
    let dir = TempDir::new().unwrap();
    let mut cache = open(dir.path()).unwrap();
    let whole = Sequence::new(&[1], &[2, 3]);
    cache
        .insert(
            std::slice::from_ref(&whole),
            &values(std::slice::from_ref(&whole)).unwrap(),
        )
        .unwrap();
    assert!(cache.contains(&whole));
    assert!(
        !cache.contains(&Sequence::new(&[1, 2], &[3])),
        "the same ids, cut elsewhere"
    );
    assert!(!cache.contains(&Sequence::new(&[1], &[2])), "truncated");
}

#[test]
fn the_key_holds_what_the_number_depends_on() {
    let dir = TempDir::new().unwrap();
    let mut cache = open(dir.path()).unwrap();
    let plain = Sequence::new(&[1], &[2, 3]);
    let counted = |marks: [bool; 2]| plain.clone().with_counted(&marks).unwrap();
    let sequences = [
        plain.clone(),
        counted([true, false]),
        counted([false, true]),
        plain.clone().with_context([0; 32]),
        plain.clone().with_context([1; 32]),
        counted([false, true]).with_context([1; 32]),
    ];
    for (i, sequence) in sequences.iter().enumerate() {
        assert!(!cache.contains(sequence), "{i}");
        let length = [sequence.length()];
        let value = SequenceLogProbs::from_values(&[-(i as f32)], &length, &device()).unwrap();
        cache
            .insert(std::slice::from_ref(sequence), &value)
            .unwrap();
    }
    assert!(cache.contains(&counted([true, true])), "the default");
    cache.flush().unwrap();
    let log_probs = open(dir.path())
        .unwrap()
        .log_probs(&sequences, &device())
        .unwrap();
    assert_eq!(
        read(log_probs.sum()),
        [0, -1, -2, -3, -4, -5].map(|x| x as f32)
    );
    assert_eq!(read(log_probs.lengths()), [2.0, 1.0, 1.0, 2.0, 2.0, 1.0]);
}

#[test]
fn another_model_has_another_cache() {
    let dir = TempDir::new().unwrap();
    fill(&mut open(dir.path()).unwrap(), 0..3, 4);
    for other in [
        fingerprint_of(&linear(0.25)),
        fingerprint_of(&linear(-0.0)),
        fingerprint_of(&LinearConfig::new(1, 1).with_bias(false).init(&device())),
        fingerprint().with("template", b"v1"),
        fingerprint().with("templatev", b"1"),
    ] {
        assert_ne!(other, fingerprint());
        assert!(ReferenceCache::open(dir.path(), other).unwrap().is_empty());
    }
    let renamed = fingerprint().with("a", b"bc");
    assert_ne!(renamed, fingerprint().with("ab", b"c"));
    // Neither ids nor autodiff nor a copy change it.
    assert_eq!(fingerprint_of(&linear(0.5).train()), fingerprint());
    let zero = fingerprint_of(&linear(0.0));
    assert_ne!(zero, fingerprint_of(&linear(-0.0)), "bits, not values");
    assert_eq!(fingerprint().to_string().len(), 64);
}

#[test]
fn several_writers() {
    let dir = TempDir::new().unwrap();
    let mut first = open(dir.path()).unwrap();
    let mut second = open(dir.path()).unwrap();
    fill(&mut first, 0..6, 2);
    fill(&mut second, 3..9, 2); // both compute 3, 4 and 5
    assert_eq!((first.len(), second.len()), (6, 6));
    first.refresh().unwrap();
    assert_eq!(first.len(), 9);
    assert_eq!(open(dir.path()).unwrap().len(), 9);
}

/// One value for `sequence(0)`.
fn insert(cache: &mut ReferenceCache, sum: f32) {
    let value = SequenceLogProbs::from_values(&[sum], &[1], &device()).unwrap();
    cache.insert(&[sequence(0)], &value).unwrap();
}

fn value(cache: &ReferenceCache) -> f32 {
    read(cache.log_probs(&[sequence(0)], &device()).unwrap().sum())[0]
}

#[test]
fn of_several_values_the_smallest_name_decides() {
    // Segments of one writer each, with a value each for the same sequence.
    let segments: Vec<(PathBuf, f32, TempDir)> = (0..6)
        .map(|i| {
            let dir = TempDir::new().unwrap();
            let mut cache = open(dir.path()).unwrap();
            insert(&mut cache, -(i as f32));
            cache.flush().unwrap();
            (only_segment(&cache), -(i as f32), dir)
        })
        .collect();
    let smallest = segments
        .iter()
        .min_by_key(|s| s.0.file_name().unwrap().to_owned());
    let expected = smallest.unwrap().1;

    // Whatever order the files come in, at once or one after the other.
    for first in 0..segments.len() {
        let dir = TempDir::new().unwrap();
        let mut early = open(dir.path()).unwrap();
        let mut best: Option<&(PathBuf, f32, TempDir)> = None;
        for i in 0..segments.len() {
            let segment = &segments[(first + i) % segments.len()];
            let name = segment.0.file_name().unwrap();
            fs::copy(&segment.0, early.directory().join(name)).unwrap();
            early.refresh().unwrap();
            if best.is_none_or(|best| name < best.0.file_name().unwrap()) {
                best = Some(segment);
            }
            assert_eq!(value(&early), best.unwrap().1);
        }
        assert_eq!(value(&early), expected);
        assert_eq!(value(&open(dir.path()).unwrap()), expected);
    }
}

#[test]
fn two_writers_of_one_sequence_agree() {
    for (mine, theirs) in [(-1.0, -2.0), (-2.0, -1.0)] {
        let dir = TempDir::new().unwrap();
        let [mut a, mut b] = [(); 2].map(|()| open(dir.path()).unwrap());
        insert(&mut a, mine);
        insert(&mut b, theirs);
        a.flush().unwrap();
        b.flush().unwrap();
        assert_eq!(
            (value(&a), value(&b)),
            (mine, theirs),
            "only a refresh changes a value"
        );
        a.refresh().unwrap();
        b.refresh().unwrap();
        let later = open(dir.path()).unwrap();
        assert_eq!((value(&a), value(&b)), (value(&later), value(&later)));

        // What is on disk comes before what is not.
        let mut late = open(dir.path()).unwrap();
        let other = TempDir::new().unwrap();
        let mut unwritten = open(other.path()).unwrap();
        insert(&mut unwritten, -9.0);
        insert(&mut late, -9.0); // there already
        assert_eq!(value(&late), value(&later));
        for file in fs::read_dir(later.directory()).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), unwritten.directory().join(file.file_name())).unwrap();
        }
        unwritten.refresh().unwrap();
        assert_eq!(value(&unwritten), value(&later));
        unwritten.flush().unwrap();
        let files = fs::read_dir(unwritten.directory()).unwrap().count();
        assert_eq!(files, 2, "nothing is left to write");
    }
}

#[test]
fn files_of_the_system_are_passed_over() {
    let dir = TempDir::new().unwrap();
    let cache = open(dir.path()).unwrap();
    for name in [".DS_Store", ".nfs000000000000c0de", "._x.bpk", ".x.bpk"] {
        fs::write(cache.directory().join(name), "theirs").unwrap();
    }
    assert!(open(dir.path()).unwrap().is_empty());
}

#[test]
fn values_that_do_not_belong_into_a_cache() {
    let dir = TempDir::new().unwrap();
    let mut cache = open(dir.path()).unwrap();
    let two = [sequence(0), sequence(1)];
    let nan = SequenceLogProbs::from_values(&[-1.0, f32::NAN], &[1, 2], &device()).unwrap();
    let error = cache.insert(&two, &nan).unwrap_err();
    assert_eq!(error.to_string(), "sequence 1 has the log-probability NaN");
    let error = cache.insert(&two[..1], &values(&two).unwrap()).unwrap_err();
    let expected = "`log_probs`: expected 1, one per sequence, found 2";
    assert_eq!(error.to_string(), expected);
    // Sums over other tokens than those of the sequence: another truncation, another mask.
    let longer = SequenceLogProbs::from_values(&[-1.0, -1.0], &[1, 3], &device()).unwrap();
    let error = cache.insert(&two, &longer).unwrap_err();
    let expected = "`lengths`: expected 2 counted tokens of sequence 1, found 3";
    assert_eq!(error.to_string(), expected);
    let error = cache.fill(&two, 0, |_| values(&two).map_err(CacheError::from), |_| {});
    let expected = "`batch`: expected 1 at least, found 0";
    assert_eq!(error.unwrap_err().to_string(), expected);
    assert!(cache.is_empty());

    cache.flush().unwrap();
    assert_eq!(
        fs::read_dir(cache.directory()).unwrap().count(),
        0,
        "nothing to write"
    );
    // The first value stays.
    cache.insert(&two, &values(&two).unwrap()).unwrap();
    let other = SequenceLogProbs::from_values(&[-9.0, -9.0], &[1, 2], &device()).unwrap();
    cache.insert(&two, &other).unwrap();
    let sums = read(cache.log_probs(&two, &device()).unwrap().sum());
    assert_eq!(sums, [sum_of(0), sum_of(1)]);
}

#[test]
fn a_computation_that_fails_keeps_what_was_done() {
    let dir = TempDir::new().unwrap();
    let mut cache = open(dir.path()).unwrap();
    let sequences: Vec<Sequence> = (0..6).map(sequence).collect();
    let mut calls = 0;
    let error = cache.fill(
        &sequences,
        2,
        |batch| {
            calls += 1;
            if calls == 3 {
                return Err(InvalidInput::new("logits", "memory", "none").into());
            }
            values(batch).map_err(CacheError::from)
        },
        |_| {},
    );
    assert!(matches!(error, Err(CacheError::Input(_))), "{error:?}");
    assert_eq!(open(dir.path()).unwrap().len(), 4);
}

fn only_segment(cache: &ReferenceCache) -> PathBuf {
    let mut files = fs::read_dir(cache.directory()).unwrap();
    let path = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none());
    path
}

#[test]
fn files_that_are_not_whole_segments() {
    let dir = TempDir::new().unwrap();
    let mut cache = open(dir.path()).unwrap();
    fill(&mut cache, 0..3, 4);
    let path = only_segment(&cache);
    let whole = fs::read(&path).unwrap();
    let says = |content: &[u8], expected: &str| {
        fs::write(&path, content).unwrap();
        let error = open(dir.path()).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with(path.to_str().unwrap()), "{text}");
        assert!(text.contains(expected), "{text}");
        error
    };
    for length in [0, 5, 60, whole.len() / 2, whole.len() - 1] {
        let error = says(&whole[..length], "torn or changed");
        assert!(matches!(error, CacheError::Torn { .. }), "{error:?}");
    }
    let mut changed = whole.clone();
    *changed.last_mut().unwrap() ^= 1;
    says(&changed, "torn or changed: by its content its name is");
    let error = says(b"{\"not\": \"burnpack\", \"at\": \"all\"}", "not a segment");
    assert!(matches!(error, CacheError::Foreign { .. }), "{error:?}");

    // What another version, another program or another model wrote.
    let with = |format: &str, version: &str, model: &str| {
        burn_pack::Writer::new(vec![])
            .with_metadata("format", format)
            .with_metadata("version", version)
            .with_metadata("fingerprint", model)
            .into_bytes()
            .unwrap()
            .to_vec()
    };
    let ours = "burn-preference reference cache";
    // Version 1 had no mask and no context in its keys.
    let error = says(
        &with(ours, "1", ""),
        "cache format 1, but this version reads 2: delete the directory and fill it again, or use \
         another root",
    );
    assert!(matches!(error, CacheError::Outdated { .. }), "{error:?}");
    says(
        &with("a model", "2", ""),
        "a burnpack file of something else",
    );
    says(
        &with(ours, "2", "abc"),
        "of the model abc, not a segment of this cache",
    );
    let mine = fingerprint().to_string();
    says(&with(ours, "2", &mine), "Tensor not found: keys");

    fs::write(&path, &whole).unwrap();
    assert_eq!(open(dir.path()).unwrap().len(), 3);
    let notes = cache.directory().join("notes.txt");
    fs::write(&notes, "").unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("notes.txt: another kind of file, not a segment of this cache"),
        "{error}"
    );
    fs::remove_file(notes).unwrap();
    // What a killed writer leaves behind.
    let [scratch, other] = ["x.bpk.1-0.tmp", ".x.tmp"].map(|name| cache.directory().join(name));
    fs::write(&scratch, &whole[..9]).unwrap();
    fs::write(&other, "").unwrap();
    let cache = open(dir.path()).unwrap();
    assert_eq!(cache.len(), 3);
    cache.remove_scratch().unwrap();
    assert!(!scratch.exists() && other.exists() && path.exists());
    assert_eq!(open(dir.path()).unwrap().len(), 3);

    let file = dir.path().join("a file");
    fs::write(&file, "").unwrap();
    assert!(matches!(open(&file), Err(CacheError::File { .. })));
}

/// A whole segment, by its name, that no insert of this crate could have made.
#[test]
fn a_length_that_contradicts_its_sequence() {
    let dir = TempDir::new().unwrap();
    let mut cache = open(dir.path()).unwrap();
    insert(&mut cache, -1.0);
    cache.flush().unwrap();
    let path = only_segment(&cache);
    let bytes = burn_pack::Bytes::from_bytes_vec(fs::read(&path).unwrap());
    let reader = burn_pack::Reader::from_bytes(bytes).unwrap();
    let column = |name: &str| reader.tensor_data(name).unwrap();
    let columns = [
        ("keys", burn_pack::DType::U8, vec![1, 32], column("keys")),
        ("sums", burn_pack::DType::F64, vec![1], column("sums")),
        ("lengths", burn_pack::DType::U32, vec![1], vec![7, 0, 0, 0]),
    ];
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"2");
    hasher.update(fingerprint().to_string().as_bytes());
    for (.., bytes) in &columns {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    let tensors = columns.map(|(name, dtype, shape, bytes)| {
        let bytes = burn_pack::Bytes::from_bytes_vec(bytes);
        burn_pack::Tensor::new(name.to_owned(), dtype, shape, None, bytes)
    });
    fs::remove_file(&path).unwrap();
    burn_pack::Writer::new(tensors.into())
        .with_metadata("format", "burn-preference reference cache")
        .with_metadata("version", "2")
        .with_metadata("fingerprint", &fingerprint().to_string())
        .write_to_file(path.with_file_name(format!("{}.bpk", hasher.finalize().to_hex())))
        .unwrap();
    let cache = open(dir.path()).unwrap();
    let error = cache.log_probs(&[sequence(0)], &device()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`lengths`: expected 1 counted tokens of sequence 0, found 7"
    );
}

proptest! {
    #![proptest_config(cases(100))]

    /// Whatever happens to a segment, it is whole or an error.
    #[test]
    fn no_damage_goes_unnoticed(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let dir = TempDir::new().unwrap();
        let mut cache = open(dir.path()).unwrap();
        fill(&mut cache, 0..3, 4);
        let path = only_segment(&cache);
        let mut content = fs::read(&path).unwrap();
        for (index, byte) in edits {
            let at = index.index(content.len());
            content[at] = byte;
        }
        if let Some(cut) = cut {
            content.truncate(cut.index(content.len()));
        }
        fs::write(&path, content).unwrap();
        if let Ok(cache) = open(dir.path()) {
            let sequences: Vec<Sequence> = (0..3).map(sequence).collect();
            let sums = read(cache.log_probs(&sequences, &device()).unwrap().sum());
            prop_assert_eq!(sums, [0, 1, 2].map(sum_of));
        }
    }
}

const ROOT: &str = "BURN_PREFERENCE_TEST_CACHE";

/// The process that is killed: not a test, but what `killed_writers_lose_nothing` starts.
#[test]
#[ignore = "started by killed_writers_lose_nothing"]
fn writer() {
    let Ok(root) = std::env::var(ROOT) else {
        return;
    };
    let start: u32 = std::env::var("START").unwrap().parse().unwrap();
    let mut cache = open(Path::new(&root)).unwrap();
    for i in start.. {
        let one = [sequence(i)];
        cache.insert(&one, &values(&one).unwrap()).unwrap();
        cache.flush().unwrap();
        println!("acknowledged {i}"); // a line is flushed at its end
    }
}

fn start_writer(root: &Path, start: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cache::writer", "--ignored", "--nocapture"])
        .env(ROOT, root)
        .env("START", start.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn killed_writers_lose_nothing() {
    let dir = TempDir::new().unwrap();
    let mut acknowledged = BTreeSet::new();
    for round in 0..12 {
        // Two writers at once, each killed (SIGKILL) somewhere behind its first segments.
        let mut writers = [0, 1].map(|w| start_writer(dir.path(), (2 * round + w) * 10_000));
        for (w, writer) in writers.iter_mut().enumerate() {
            let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
            let mut until = 3 + (round as usize * 7 + w * 3) % 11;
            while until > 0 {
                let line = lines.next().expect("it writes until it is killed").unwrap();
                if let Some((_, i)) = line.split_once("acknowledged ") {
                    acknowledged.insert(i.parse::<u32>().unwrap());
                    until -= 1;
                }
            }
            std::thread::sleep(std::time::Duration::from_micros(
                u64::from(round) * 137 % 1000,
            ));
            writer.kill().unwrap();
            // What it had printed by then counts as well, but for a line that it did not end.
            let rest = lines.map_while(Result::ok);
            let numbers = rest.filter_map(|l| l.split_once("acknowledged ")?.1.parse().ok());
            let mut numbers: Vec<u32> = numbers.collect();
            numbers.pop();
            acknowledged.extend(numbers);
            writer.wait().unwrap();
        }
        let cache = open(dir.path()).unwrap();
        let sequences: Vec<Sequence> = acknowledged.iter().map(|&i| sequence(i)).collect();
        let sums = read(cache.log_probs(&sequences, &device()).unwrap().sum());
        let expected: Vec<f32> = acknowledged.iter().map(|&i| sum_of(i)).collect();
        assert_eq!(sums, expected);
    }
    assert!(acknowledged.len() >= 12 * 2 * 3);
}
