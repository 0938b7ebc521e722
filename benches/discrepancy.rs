//! What the divergence of two models costs, as a multiple of the log-prob head of one.
//!
//! ```text
//! cargo bench --bench discrepancy -- --shape s1
//! ```
//!
//! Policy and reference have the same shapes. The head is that of `head_floor`: its default keeps
//! logits, `bounded` none. Variants are timed in turn, in one process; the table holds medians.
//! Memory is what a fresh process needs at most beyond inputs and gradients (Linux).

use std::hint::black_box;
use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use burn_preference::log_probs::{CompletionMask, Discrepancy, TokenDiscrepancy};
use burn_preference::{InvalidInput, LmHead, TokenLogProbs};
use clap::{Parser, ValueEnum};
use finetune::measure::{self, median, memory_of};

#[derive(Parser, Debug, Clone)]
struct Arguments {
    /// `s1` (2×512 tokens, hidden 576, vocab 49152), `s2` (4×512, 1024, 128256), or
    /// `batch,time,hidden,vocab`.
    #[arg(long, default_value = "s1", value_parser = shape)]
    shape: [usize; 4],
    /// Number type of hidden states and weights.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Number,
    /// Threads; all cores if not given.
    #[arg(long)]
    threads: Option<usize>,
    /// How often every variant runs.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these variants.
    #[arg(long, value_enum)]
    only: Vec<Variant>,
    /// One row per line instead of a table: variant, seconds, memory.
    #[arg(long)]
    csv: bool,
    /// Print the peak memory of one variant, and nothing else.
    #[arg(long, value_enum, hide = true)]
    memory: Option<Variant>,
    /// What `cargo bench` says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Batch, time, hidden size and vocabulary.
fn shape(text: &str) -> Result<[usize; 4], String> {
    let numbers = match text {
        "s1" => "2,512,576,49152",
        "s2" => "4,512,1024,128256",
        other => other,
    };
    let numbers: Result<Vec<usize>, _> = numbers.split(',').map(str::parse).collect();
    let numbers = numbers.ok().and_then(|numbers| numbers.try_into().ok());
    numbers.ok_or_else(|| "s1, s2 or batch,time,hidden,vocab".to_owned())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Number {
    F32,
    Bf16,
    F16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Variant {
    /// The log-prob head with all gradients.
    Head,
    /// The same, which keeps no logits.
    Bounded,
    /// Divergences with all gradients of the policy.
    ForwardKl,
    ReverseKl,
    JensenShannon,
    /// The log-prob head whose hidden states alone have a gradient.
    FrozenHead,
    FrozenForwardKl,
    FrozenReverseKl,
    FrozenJensenShannon,
}

impl Variant {
    fn kind(self) -> Option<Discrepancy> {
        match self {
            Self::Head | Self::Bounded | Self::FrozenHead => None,
            Self::ForwardKl | Self::FrozenForwardKl => Some(Discrepancy::ForwardKl),
            Self::ReverseKl | Self::FrozenReverseKl => Some(Discrepancy::ReverseKl),
            Self::JensenShannon | Self::FrozenJensenShannon => {
                Some(Discrepancy::JensenShannon(0.5))
            }
        }
    }

    fn is_frozen(self) -> bool {
        matches!(
            self,
            Self::FrozenHead
                | Self::FrozenForwardKl
                | Self::FrozenReverseKl
                | Self::FrozenJensenShannon
        )
    }

    fn name(self) -> String {
        let value = self.to_possible_value().expect("none is skipped");
        value.get_name().to_owned()
    }
}

struct Inputs {
    hidden: [Tensor<3>; 2],
    weights: [Tensor<2>; 2],
    tokens: Tensor<2, Int>,
    mask: CompletionMask,
}

impl Inputs {
    fn new(arguments: &Arguments) -> Result<Self, InvalidInput> {
        let device = Device::default();
        let [batch, time, width, vocab] = arguments.shape;
        let dtype = match arguments.dtype {
            Number::F32 => DType::F32,
            Number::Bf16 => DType::BF16,
            Number::F16 => DType::F16,
        };
        let marks: Vec<bool> = (0..batch * time).map(|place| place % time > 0).collect();
        let ids = Tensor::<1, Int>::arange(0..(batch * time) as i64, &device);
        let normal = |spread| Distribution::Normal(0.0, spread);
        let states = || {
            let states = Tensor::<3>::random([batch, time, width], normal(1.0), &device);
            states.cast(dtype)
        };
        let spread = (width as f64).sqrt().recip();
        let weight = || Tensor::<2>::random([vocab, width], normal(spread), &device).cast(dtype);
        Ok(Self {
            hidden: [states(), states()],
            weights: [weight(), weight()],
            tokens: (ids * 7919 % vocab as i64).reshape([batch, time]),
            mask: CompletionMask::from_data(TensorData::new(marks, [batch, time]), &device)?,
        })
    }

    /// Forward and backward, as a training step has them.
    fn step(&self, variant: Variant) -> Result<(), InvalidInput> {
        let hidden = self.hidden[0].clone().autodiff().require_grad();
        let weight = self.weights[0].clone();
        let weight = if variant.is_frozen() {
            weight
        } else {
            weight.autodiff().require_grad()
        };
        let head = LmHead::new(weight.clone());
        let head = match variant {
            Variant::Bounded => head.with_retained_bytes(0),
            _ => head,
        };
        let (policy, mask) = ((hidden.clone(), head), self.mask.clone());
        let loss = match variant.kind() {
            None => TokenLogProbs::from_output(policy, self.tokens.clone(), mask)?
                .sequence()
                .sum(),
            Some(kind) => {
                let reference = LmHead::new(self.weights[1].clone());
                let reference = (self.hidden[1].clone(), reference);
                TokenDiscrepancy::from_outputs(kind, policy, reference, mask)?.sums()
            }
        };
        let grads = loss.sum().backward();
        black_box((hidden.grad(&grads), weight.grad(&grads)));
        Ok(())
    }

    /// MiB of the gradients that a step returns.
    fn gradients(&self, variant: Variant) -> f64 {
        let states = self.hidden[0].shape().num_elements();
        let weight = if variant.is_frozen() {
            0
        } else {
            self.weights[0].shape().num_elements()
        };
        let bytes = self.hidden[0].dtype().size() * (states + weight);
        bytes as f64 / f64::from(1 << 20)
    }
}

/// Peak memory of one step beyond inputs and gradients, in MiB.
fn memory(arguments: &Arguments, variant: Variant) -> Result<Option<f64>, InvalidInput> {
    let inputs = Inputs::new(arguments)?;
    let peak = measure::peak_memory(|| inputs.step(variant))?;
    Ok(peak.map(|peak| peak - inputs.gradients(variant)))
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

    let inputs = Inputs::new(&arguments)?;
    let mut times = vec![Vec::new(); chosen.len()];
    for round in 0..=arguments.rounds {
        for (times, &variant) in times.iter_mut().zip(chosen) {
            let start = Instant::now();
            inputs.step(variant)?;
            // The first round warms up.
            if round > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    let of = |wanted: Variant| {
        let place = chosen.iter().position(|variant| *variant == wanted);
        place.map(|place| medians[place])
    };
    if !arguments.csv {
        let [batch, time, width, vocab] = arguments.shape;
        println!(
            "batch {batch}, time {time}, hidden {width}, vocab {vocab}; {} threads\n\n\
             | variant | s | × its head | MiB |\n|---|---|---|---|",
            rayon::current_num_threads(),
        );
    }
    for ((variant, seconds), memory) in chosen.iter().zip(&medians).zip(memories) {
        let name = variant.name();
        if arguments.csv {
            println!("{name},{seconds},{memory}");
            continue;
        }
        let head = of(if variant.is_frozen() {
            Variant::FrozenHead
        } else {
            Variant::Head
        });
        let ratio = head.map_or_else(|| "–".to_owned(), |head| format!("{:.2}", seconds / head));
        println!("| {name} | {seconds:.3} | {ratio} | {memory} |");
    }
    Ok(())
}
