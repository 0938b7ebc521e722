//! What the cache of the reference costs: seconds to insert, flush, open and look up, and bytes of a
//! sequence on disk and in memory; and a directory of many segments.
//!
//! ```console
//! cargo bench --bench cache -- --sequences 10000,100000,1000000,10000000
//! ```
//!
//! Sequences have 24 ids; a longer one takes longer to hash, and as many bytes. The first columns are of
//! one segment, the last ones of as many sequences in segments of 64, as runs leave them that are
//! flushed after each batch.

use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::path::Path;

use burn::module::Initializer;
use burn::nn::LinearConfig;
use burn::tensor::Device;
use burn_preference::SequenceLogProbs;
use burn_preference::reference::cache::{Fingerprint, ReferenceCache};
use burn_preference::tokens::Sequence;
use clap::Parser;
use finetune::measure::{memory_of, peak_memory, timed};

#[derive(Parser, Debug)]
struct Arguments {
    /// Numbers of sequences.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 1_000_000])]
    sequences: Vec<usize>,
    /// Numbers of segments of 64 sequences.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1000, 10_000])]
    segments: Vec<usize>,
    /// FOLDER: measures the memory of a cache that is opened, in a process of its own.
    #[arg(long, hide = true)]
    memory: Option<String>,
    /// What `cargo bench` says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Sequences that are made, inserted and looked up at once.
const BLOCK: usize = 10_000;
const SEGMENT: usize = 64;

fn sequences(numbers: std::ops::Range<usize>) -> Vec<Sequence> {
    let sequence = |number: usize| {
        let number = u32::try_from(number).expect("fewer than 2³²");
        let ids: Vec<u32> = (0..24).map(|place| number.rotate_left(place)).collect();
        Sequence::new(&ids[..16], &ids[16..])
    };
    numbers.map(sequence).collect()
}

fn log_probs(count: usize) -> Result<SequenceLogProbs, Box<dyn Error>> {
    let sums = vec![-12.5; count];
    Ok(SequenceLogProbs::from_values(
        &sums,
        &vec![8; count],
        &Device::default(),
    )?)
}

fn open(folder: &Path) -> Result<ReferenceCache, Box<dyn Error>> {
    let model = LinearConfig::new(1, 1).with_initializer(Initializer::Zeros);
    let fingerprint = Fingerprint::of(&model.init(&Device::default()))?;
    Ok(ReferenceCache::open(folder, fingerprint)?)
}

fn bytes(folder: &Path) -> Result<u64, Box<dyn Error>> {
    let mut all = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        all += if entry.path().is_dir() {
            bytes(&entry.path())?
        } else {
            entry.metadata()?.len()
        };
    }
    Ok(all)
}

fn one_segment(count: usize) -> Result<String, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut cache = open(folder.path())?;
    let mut insert = 0.0;
    let blocks = || {
        (0..count)
            .step_by(BLOCK)
            .map(|first| first..count.min(first + BLOCK))
    };
    for block in blocks() {
        let (sequences, log_probs) = (sequences(block.clone()), log_probs(block.len())?);
        insert += timed(|| cache.insert(&sequences, &log_probs))?.1;
    }
    let ((), flush) = timed(|| cache.flush())?;
    let on_disk = bytes(folder.path())? as f64 / count as f64;
    drop(cache);
    let (cache, opened) = timed(|| open(folder.path()))?;
    assert_eq!(cache.len(), count);
    let mut look_up = 0.0;
    for block in blocks() {
        let sequences = sequences(block);
        look_up += timed(|| {
            cache
                .log_probs(&sequences, &Device::default())
                .map(black_box)
        })?
        .1;
    }
    let memory = memory_of(&folder.path().display().to_string());
    let of_one = |mib: String| {
        mib.parse::<f64>()
            .map(|mib| mib * f64::from(1 << 20) / count as f64)
    };
    let memory = memory.map(of_one).transpose()?;
    let memory = memory.map_or("–".to_owned(), |bytes| format!("{bytes:.0}"));
    Ok(format!(
        "| {count} | {insert:.2} | {flush:.2} | {opened:.2} | {look_up:.2} | {on_disk:.0} | {memory} |"
    ))
}

fn many_segments(count: usize) -> Result<String, Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let mut cache = open(folder.path())?;
    let ((), written) = timed(|| -> Result<(), Box<dyn Error>> {
        for number in 0..count {
            let sequences = sequences(number * SEGMENT..(number + 1) * SEGMENT);
            cache.insert(&sequences, &log_probs(SEGMENT)?)?;
            cache.flush()?;
        }
        Ok(())
    })?;
    drop(cache);
    let (cache, opened) = timed(|| open(folder.path()))?;
    assert_eq!(cache.len(), count * SEGMENT);
    Ok(format!(
        "| {count} | {} | {written:.2} | {opened:.2} |",
        count * SEGMENT
    ))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if let Some(folder) = &arguments.memory {
        let mut cache = None;
        let peak = peak_memory(|| {
            cache = Some(open(Path::new(folder))?);
            Ok::<_, Box<dyn Error>>(())
        })?;
        if let Some(peak) = peak {
            println!("{peak:.3}");
        }
        return Ok(());
    }
    println!(
        "| sequences | insert, s | flush, s | open, s | look up, s | bytes of one on disk | in memory |"
    );
    println!("|---|---|---|---|---|---|---|");
    for count in arguments.sequences {
        println!("{}", one_segment(count)?);
    }
    println!("\n| segments of {SEGMENT} | sequences | write, s | open, s |\n|---|---|---|---|");
    for count in arguments.segments {
        println!("{}", many_segments(count)?);
    }
    Ok(())
}
