//! What the log-prob head costs, as a multiple of the matrix products that it cannot avoid.
//!
//! ```text
//! cargo bench --bench head_floor -- --shape s1 --mask full
//! ```
//!
//! The floor is the bare products over the counted rows with the `gemm` crate that Flex uses: one
//! for a reference pass, two for a frozen head, three for a trainable one, and one more for the
//! logits that it does not keep. Floor and variants are timed in turn, in one process; the table
//! holds medians. Memory is what a fresh process needs at most beyond inputs and gradients (Linux).

use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData, activation};
use burn_preference::log_probs::{CompletionMask, Discrepancy, TokenDiscrepancy};
use burn_preference::{InvalidInput, LmHead, TokenLogProbs};
use clap::{Parser, ValueEnum};
use finetune::measure::{self, median, memory_of};
use rayon::prelude::*;

#[derive(Parser, Debug, Clone)]
struct Arguments {
    /// `s1` (2×512 tokens, hidden 576, vocab 49152), `s2` (4×512, 1024, 128256), or
    /// `batch,time,hidden,vocab`.
    #[arg(long, default_value = "s1", value_parser = Shape::parse)]
    shape: Shape,
    /// Which tokens count: all, or 40% as in real data.
    #[arg(long, value_enum, default_value = "full")]
    mask: Mask,
    /// The weight is `[hidden, vocab]`, as in Burn's `Linear`.
    #[arg(long)]
    transposed: bool,
    /// Number type of hidden states and weight.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Number,
    /// Threads; all cores if not given.
    #[arg(long)]
    threads: Option<usize>,
    /// How often every variant runs.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Only these variants.
    #[arg(long, value_enum)]
    only: Vec<Variant>,
    /// One row per line instead of a table: shape, mask, threads, variant, seconds, memory.
    #[arg(long)]
    csv: bool,
    /// Print the peak memory of one variant, and nothing else.
    #[arg(long, value_enum, hide = true)]
    memory: Option<Variant>,
    /// What `cargo bench` says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    batch: usize,
    time: usize,
    width: usize,
    vocab: usize,
}

impl Shape {
    fn parse(text: &str) -> Result<Self, String> {
        let numbers = match text {
            "s1" => "2,512,576,49152",
            "s2" => "4,512,1024,128256",
            other => other,
        };
        let numbers: Result<Vec<usize>, _> = numbers.split(',').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[batch, time, width, vocab]) => Ok(Self {
                batch,
                time,
                width,
                vocab,
            }),
            _ => Err("s1, s2 or batch,time,hidden,vocab".to_owned()),
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mask {
    Full,
    Real,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Number {
    F32,
    Bf16,
    F16,
}

impl Number {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Variant {
    /// No gradient.
    Reference,
    /// The hidden states have a gradient, the head has none.
    Frozen,
    /// Both have one, and the head keeps what it keeps by default.
    Trained,
    /// Both have one, no logits are kept.
    Bounded,
    /// Both have one, all logits are kept.
    Retained,
    /// Both have one, through the logits of Burn's `matmul` and `from_output`.
    Logits,
    /// Both have one, by Burn's `log_softmax` and `gather`.
    Burn,
    /// KL(π° ‖ π) of each token between two heads, of which one is trained.
    ForwardKl,
    /// KL(π ‖ π°) likewise.
    ReverseKl,
    /// Jensen–Shannon with β = 0.5 likewise.
    JensenShannon,
    /// KL(π° ‖ π) with frozen heads: the hidden states have a gradient.
    FrozenKl,
}

impl Variant {
    /// Products that it cannot avoid: logits, gradient of the hidden states, gradient of the weight.
    fn products(self, inputs: &Inputs) -> [f64; 3] {
        match self {
            Self::Reference => [1.0, 0.0, 0.0],
            Self::Frozen => [1.0, 1.0, 0.0],
            Self::Trained => [2.0 - inputs.kept(), 1.0, 1.0],
            Self::Bounded => [2.0, 1.0, 1.0],
            Self::Retained | Self::Logits | Self::Burn => [1.0, 1.0, 1.0],
            Self::ForwardKl | Self::ReverseKl | Self::JensenShannon => [4.0, 1.0, 1.0],
            Self::FrozenKl => [2.0, 1.0, 0.0],
        }
    }

    /// The divergence of two heads that the variant computes, if it does.
    fn discrepancy(self) -> Option<Discrepancy> {
        match self {
            Self::ForwardKl | Self::FrozenKl => Some(Discrepancy::ForwardKl),
            Self::ReverseKl => Some(Discrepancy::ReverseKl),
            Self::JensenShannon => Some(Discrepancy::JensenShannon(0.5)),
            _ => None,
        }
    }

    /// Whether the weight has a gradient.
    fn trains_weight(self) -> bool {
        !matches!(self, Self::Reference | Self::Frozen | Self::FrozenKl)
    }

    fn name(self) -> String {
        let value = self.to_possible_value().expect("none is skipped");
        value.get_name().to_owned()
    }
}

struct Inputs {
    hidden: Tensor<3>,
    weight: Tensor<2>,
    /// The weight of the head that is compared, if a variant does so.
    reference: Option<Tensor<2>>,
    transposed: bool,
    tokens: Tensor<2, Int>,
    mask: CompletionMask,
    rows: usize,
}

impl Inputs {
    fn new(arguments: &Arguments, variants: &[Variant]) -> Self {
        let device = Device::default();
        let Shape {
            batch,
            time,
            width,
            vocab,
        } = arguments.shape;
        let counted = match arguments.mask {
            Mask::Full => 1..time,
            Mask::Real => time * 7 / 20..time * 3 / 4,
        };
        let marks: Vec<bool> = (0..batch * time)
            .map(|place| counted.contains(&(place % time)))
            .collect();
        let mask = CompletionMask::from_data(TensorData::new(marks, [batch, time]), &device);
        let ids = Tensor::<1, Int>::arange(0..(batch * time) as i64, &device);
        let shape = if arguments.transposed {
            [width, vocab]
        } else {
            [vocab, width]
        };
        let dtype = arguments.dtype.dtype();
        let spread = Distribution::Normal(0.0, 1.0 / (width as f64).sqrt());
        let matrix = || Tensor::<2>::random(shape, spread, &device).cast(dtype);
        let compares = variants
            .iter()
            .any(|variant| variant.discrepancy().is_some());
        Self {
            hidden: Tensor::<3>::random(
                [batch, time, width],
                Distribution::Normal(0.0, 1.0),
                &device,
            )
            .cast(dtype),
            weight: matrix(),
            reference: compares.then(matrix),
            transposed: arguments.transposed,
            tokens: (ids * 7919 % vocab as i64).reshape([batch, time]),
            mask: mask.expect("two dimensions"),
            rows: batch * counted.len(),
        }
    }

    /// Forward and backward, as a training step has them.
    fn step(&self, variant: Variant) -> Result<(), InvalidInput> {
        let leaf = |wanted: bool, states: Tensor<2>| {
            if wanted {
                states.autodiff().require_grad()
            } else {
                states
            }
        };
        let [batch, time, width] = self.hidden.dims();
        let states = self.hidden.clone().reshape([batch * time, width]);
        let states = leaf(variant != Variant::Reference, states);
        let trainable = variant.trains_weight();
        let weight = leaf(trainable, self.weight.clone());
        let hidden = states.clone().reshape([batch, time, width]);
        let (tokens, mask) = (self.tokens.clone(), self.mask.clone());
        let values = if let Some((kind, reference)) = self.comparison(variant) {
            let policy = (hidden, self.head(weight.clone()));
            let reference = (self.hidden.clone(), self.head(reference));
            TokenDiscrepancy::from_outputs(kind, policy, reference, mask)?.sums()
        } else {
            let log_probs = match variant {
                Variant::Logits | Variant::Burn => {
                    let columns = if self.transposed {
                        weight.clone()
                    } else {
                        weight.clone().transpose()
                    };
                    let logits = hidden.matmul(columns.unsqueeze());
                    if variant == Variant::Logits {
                        TokenLogProbs::from_output(logits, tokens, mask)?
                    } else {
                        let all = activation::log_softmax(logits, 2).narrow(1, 0, time - 1);
                        let targets = tokens.narrow(1, 1, time - 1).unsqueeze_dim(2);
                        let chosen = all.gather(2, targets).squeeze_dim(2);
                        TokenLogProbs::new(chosen, mask.tensor().narrow(1, 1, time - 1))?
                    }
                }
                _ => {
                    let head = self.head(weight.clone());
                    let head = match variant {
                        Variant::Bounded => head.with_retained_bytes(0),
                        Variant::Retained => head.with_retained_bytes(usize::MAX),
                        _ => head,
                    };
                    TokenLogProbs::from_output((hidden, head), tokens, mask)?
                }
            };
            log_probs.sequence().sum()
        };
        let loss = values.sum();
        if variant == Variant::Reference {
            black_box(loss);
        } else {
            let grads = loss.backward();
            black_box((states.grad(&grads), trainable.then(|| weight.grad(&grads))));
        }
        Ok(())
    }

    fn head(&self, weight: Tensor<2>) -> LmHead {
        if self.transposed {
            LmHead::transposed(weight)
        } else {
            LmHead::new(weight)
        }
    }

    /// What a variant compares two heads by, and the weight of the reference.
    fn comparison(&self, variant: Variant) -> Option<(Discrepancy, Tensor<2>)> {
        variant.discrepancy().zip(self.reference.clone())
    }

    /// The share of the logits that a trained head keeps by default.
    fn kept(&self) -> f64 {
        let [first, second] = self.weight.dims();
        let vocab = if self.transposed { second } else { first };
        let gradient = first * second * self.weight.dtype().size();
        let logits = 4 * self.rows * vocab;
        ((gradient * 3 / 2).max(8 << 20) as f64 / logits as f64).min(1.0)
    }

    /// Bytes of the gradients that a step returns.
    fn gradients(&self, variant: Variant) -> usize {
        let states = self.hidden.shape().num_elements();
        let weight = self.weight.shape().num_elements();
        let bytes = self.weight.dtype().size();
        match variant {
            Variant::Reference => 0,
            _ if variant.trains_weight() => bytes * (states + weight),
            _ => bytes * states,
        }
    }
}

/// An operand: numbers, and how far apart its rows and its columns are.
type Operand<'a> = (&'a [f32], [isize; 2]);

/// `out = a · b` for `[m, k] × [k, n]`, by the `gemm` crate.
fn multiply(a: Operand, b: Operand, out: &mut [f32], [m, n, k]: [usize; 3], threads: usize) {
    let parallelism = match threads {
        1 => gemm::Parallelism::None,
        threads => gemm::Parallelism::Rayon(threads),
    };
    let reach = |(_, [down, right]): Operand, rows: usize, columns: usize| {
        (rows - 1) * down.unsigned_abs() + (columns - 1) * right.unsigned_abs()
    };
    assert!(reach(a, m, k) < a.0.len() && reach(b, k, n) < b.0.len() && m * n <= out.len());
    // SAFETY: by the assertion, every element that `gemm` reads or writes is inside its slice.
    #[allow(unsafe_code, reason = "gemm's interface is raw pointers")]
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n.cast_signed(),
            false,
            a.0.as_ptr(),
            a.1[1],
            a.1[0],
            b.0.as_ptr(),
            b.1[1],
            b.1[0],
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// The products alone: logits, gradient of the hidden states, gradient of the weight.
struct Floor {
    rows: usize,
    shape: Shape,
    hidden: Vec<f32>,
    weight: Vec<f32>,
    logits: Vec<f32>,
    gradients: [Vec<f32>; 2],
}

impl Floor {
    fn new(rows: usize, shape: Shape) -> Self {
        let some = |len: usize| (0..len).map(|i| (i % 13) as f32 * 0.1 - 0.6).collect();
        let Shape { width, vocab, .. } = shape;
        Self {
            rows,
            shape,
            hidden: some(rows * width),
            weight: some(width * vocab),
            logits: some(rows * vocab),
            gradients: [some(rows * width), some(width * vocab)],
        }
    }

    /// Seconds of each: one call on all threads, or a call per 256 rows, whichever is faster.
    fn seconds(&mut self) -> [f64; 3] {
        let (rows, Shape { width, vocab, .. }) = (self.rows, self.shape);
        let [d_hidden, d_weight] = &mut self.gradients;
        let by = |stride: usize| [stride.cast_signed(), 1];
        let transposed = |stride: usize| [1, stride.cast_signed()];
        let logits = fastest(
            (&self.hidden, by(width)),
            (&self.weight, transposed(width)),
            &mut self.logits,
            [rows, vocab, width],
        );
        let hidden = fastest(
            (&self.logits, by(vocab)),
            (&self.weight, by(width)),
            d_hidden,
            [rows, width, vocab],
        );
        let weight = fastest(
            (&self.logits, transposed(vocab)),
            (&self.hidden, by(width)),
            d_weight,
            [vocab, width, rows],
        );
        [logits, hidden, weight]
    }
}

fn fastest(a: Operand, b: Operand, out: &mut [f32], [m, n, k]: [usize; 3]) -> f64 {
    const ROWS: usize = 256;
    let whole = seconds(|| multiply(a, b, out, [m, n, k], rayon::current_num_threads()));
    let blocks = seconds(|| {
        out.par_chunks_mut(ROWS * n)
            .enumerate()
            .for_each(|(block, out)| {
                let (data, strides) = a;
                let first = block * ROWS * strides[0].unsigned_abs();
                multiply((&data[first..], strides), b, out, [out.len() / n, n, k], 1);
            });
    });
    whole.min(blocks)
}

/// Peak memory of one step beyond inputs and gradients, in MiB.
fn memory(arguments: &Arguments, variant: Variant) -> Result<Option<f64>, InvalidInput> {
    let inputs = Inputs::new(arguments, &[variant]);
    let peak = measure::peak_memory(|| inputs.step(variant))?;
    let gradients = inputs.gradients(variant) as f64 / f64::from(1 << 20);
    Ok(peak.map(|peak| peak - gradients))
}

fn main() -> Result<(), InvalidInput> {
    let arguments = Arguments::parse();
    if let Some(threads) = arguments.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build_global().expect("the first pool");
    }
    if let Some(variant) = arguments.memory {
        if let Some(memory) = memory(&arguments, variant)? {
            println!("{memory:.0}");
        }
        return Ok(());
    }
    let chosen = if arguments.only.is_empty() {
        Variant::value_variants()
    } else {
        &arguments.only
    };
    let memory = |variant: &Variant| memory_of(&variant.name()).unwrap_or_else(|| "–".to_owned());
    let memories: Vec<String> = chosen.iter().map(memory).collect();

    let inputs = Inputs::new(&arguments, chosen);
    let mut floor = Floor::new(inputs.rows, arguments.shape);
    let mut floors = [const { Vec::new() }; 3];
    let mut times = vec![Vec::new(); chosen.len()];
    for round in 0..=arguments.rounds {
        let products = floor.seconds();
        let mut steps = Vec::new();
        for &variant in chosen {
            let start = Instant::now();
            inputs.step(variant)?;
            steps.push(start.elapsed().as_secs_f64());
        }
        // The first round warms up.
        if round > 0 {
            floors
                .iter_mut()
                .zip(products)
                .for_each(|(all, one)| all.push(one));
            times
                .iter_mut()
                .zip(steps)
                .for_each(|(all, one)| all.push(one));
        }
    }

    let [logits, hidden, weight] = floors.map(median);
    let Shape {
        batch,
        time,
        width,
        vocab,
    } = arguments.shape;
    let threads = rayon::current_num_threads();
    if !arguments.csv {
        println!(
            "batch {batch}, time {time}, hidden {width}, vocab {vocab}; {} rows counted; \
             {threads} threads\n\
             floor: logits {logits:.3} s, d hidden {hidden:.3} s, d weight {weight:.3} s\n\n\
             | variant | s | products | × floor | MiB |\n|---|---|---|---|---|",
            inputs.rows,
        );
    }
    for ((variant, times), memory) in chosen.iter().zip(times).zip(memories) {
        let (seconds, products) = (median(times), variant.products(&inputs));
        let each = products.iter().zip([logits, hidden, weight]);
        let floor: f64 = each.map(|(count, seconds)| count * seconds).sum();
        let products: f64 = products.iter().sum();
        let (name, ratio) = (variant.name(), seconds / floor);
        if arguments.csv {
            let mask = format!("{:?}", arguments.mask).to_lowercase();
            println!(
                "{batch},{time},{width},{vocab},{mask},{threads},{name},{seconds},{floor},{memory}"
            );
        } else {
            println!("| {name} | {seconds:.3} | {products:.3} | {ratio:.2} | {memory} |");
        }
    }
    Ok(())
}
