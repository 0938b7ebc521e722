//! Times and memory of the head on the device of the feature, in turn with Burn's bare products:
//! a line `what,seconds,bytes` each, which `table.py` reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use burn::backend::DispatchDevice;
use burn::tensor::{Bool, DType, Device, Distribution, Int, Tensor};
use burn_preference::{InvalidInput, LmHead, TokenLogProbs};
use clap::{Parser, ValueEnum};
use cubecl::MemoryScope;
use cubecl::client::Client;
use cubecl::logging::{LaunchObservation, LaunchObserver};

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    rows: usize,
    #[arg(long)]
    hidden: usize,
    #[arg(long)]
    vocab: usize,
    #[arg(long, value_enum)]
    dtype: Number,
    /// How often everything is timed, after a round that warms up.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Calls between two waits for the device.
    #[arg(long, default_value_t = 3)]
    calls: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Number {
    F32,
    F16,
    Bf16,
}

impl Number {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// No gradient.
    Reference,
    /// The hidden states have a gradient, the head has none.
    Frozen,
    /// Both have one.
    Trained,
}

struct Inputs {
    device: Device,
    hidden: Tensor<2>,
    weight: Tensor<2>,
    tokens: Tensor<2, Int>,
    mask: Tensor<2, Bool>,
    /// As the gradient of logits: any numbers do.
    delta: Tensor<2>,
}

impl Inputs {
    fn new(arguments: &Arguments) -> Self {
        let device = Device::default();
        let (rows, width, vocab) = (arguments.rows, arguments.hidden, arguments.vocab);
        let normal = |shape: [usize; 2], deviation: f64| {
            let all = Distribution::Normal(0.0, deviation);
            let wide = Tensor::<2>::random(shape, all, (&device, DType::F32));
            wide.cast(arguments.dtype.dtype())
        };
        // One sequence: its first token has no prediction.
        let place = Tensor::<1, Int>::arange(0..(rows + 1) as i64, &device);
        let hidden = normal([rows + 1, width], 1.0);
        let weight = normal([vocab, width], 1.0 / (width as f64).sqrt());
        let delta = normal([rows, vocab], 1.0 / vocab as f64);
        Self {
            hidden,
            weight,
            tokens: (place.clone() * 7919 % vocab as i64).unsqueeze(),
            mask: place.greater_elem(0).unsqueeze(),
            delta,
            device,
        }
    }

    /// Forward and backward of the log-probs of all rows, and the gradients.
    fn step(&self, mode: Mode) -> Result<[Option<Tensor<2>>; 2], InvalidInput> {
        let leaf = |wanted: bool, tensor: &Tensor<2>| {
            if wanted {
                tensor.clone().autodiff().require_grad()
            } else {
                tensor.clone()
            }
        };
        let hidden = leaf(mode != Mode::Reference, &self.hidden);
        let weight = leaf(mode == Mode::Trained, &self.weight);
        let (tokens, mask) = (self.tokens.clone(), self.mask.clone());
        let head = LmHead::new(weight.clone());
        let states = hidden.clone().unsqueeze();
        let loss = TokenLogProbs::from_output((states, head), tokens, mask)?
            .log_probs()
            .sum();
        if mode == Mode::Reference {
            return Ok([None, None]);
        }
        let grads = loss.backward();
        Ok([hidden.grad(&grads), weight.grad(&grads)])
    }

    /// Logits, gradient of the hidden states, gradient of the weight.
    fn product(&self, number: usize) -> Tensor<2> {
        let [rows, _] = self.delta.dims();
        let hidden = self.hidden.clone().narrow(0, 0, rows);
        let (weight, delta) = (self.weight.clone(), self.delta.clone());
        match number {
            0 => hidden.matmul(weight.transpose()),
            1 => delta.matmul(weight),
            _ => delta.transpose().matmul(hidden),
        }
    }

    fn wait(&self) {
        self.device.sync().expect("a device that answers");
    }

    /// Seconds of one of `calls` calls.
    fn seconds<T>(&self, calls: usize, mut call: impl FnMut() -> T) -> f64 {
        self.wait();
        let start = Instant::now();
        for _ in 0..calls {
            drop(call());
        }
        self.wait();
        start.elapsed().as_secs_f64() / calls as f64
    }
}

/// The most bytes in use at the start of any kernel.
struct Peak {
    client: Client,
    bytes: AtomicU64,
}

impl Peak {
    fn new(device: &Device) -> Arc<Self> {
        #[allow(
            irrefutable_let_patterns,
            reason = "which devices there are depends on features"
        )]
        let DispatchDevice::Cube(device) = device.as_dispatch() else {
            panic!("{device:?} is no device of CubeCL");
        };
        let client = device.client();
        Arc::new(Self {
            client,
            bytes: AtomicU64::new(0),
        })
    }

    fn in_use(&self) -> u64 {
        self.client
            .memory_report(MemoryScope::Device)
            .usage()
            .bytes_in_use
    }
}

impl LaunchObserver for Peak {
    fn launched(&self, _: &'static str) {
        self.bytes.fetch_max(self.in_use(), Ordering::Relaxed);
    }
}

/// Bytes at the peak of a step beyond inputs and gradients.
fn memory(inputs: &Inputs, mode: Mode) -> Result<u64, InvalidInput> {
    inputs.wait();
    let peak = Peak::new(&inputs.device);
    let before = peak.in_use();
    let watching = LaunchObservation::new(peak.clone());
    let gradients = inputs.step(mode)?;
    inputs.wait();
    drop(watching);
    let bytes = |tensor: &Tensor<2>| tensor.shape().num_elements() * tensor.dtype().size();
    let gradients: usize = gradients.iter().flatten().map(bytes).sum();
    let most = peak.bytes.load(Ordering::Relaxed);
    Ok(most.saturating_sub(before + gradients as u64))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), InvalidInput> {
    let arguments = Arguments::parse();
    let inputs = Inputs::new(&arguments);
    let modes = [Mode::Reference, Mode::Frozen, Mode::Trained];
    let mut products = [const { Vec::new() }; 3];
    let mut steps = [const { Vec::new() }; 3];
    for round in 0..=arguments.rounds {
        for number in 0..3 {
            let seconds = inputs.seconds(arguments.calls, || inputs.product(number));
            products[number].push(seconds);
        }
        for (mode, steps) in modes.into_iter().zip(&mut steps) {
            steps.push(inputs.seconds(arguments.calls, || inputs.step(mode)));
        }
        // The first round tunes and compiles.
        if round == 0 {
            products.iter_mut().chain(&mut steps).for_each(Vec::clear);
        }
    }
    for (name, times) in ["logits", "d_hidden", "d_weight"].into_iter().zip(products) {
        println!("{name},{},", median(times));
    }
    for ((mode, name), times) in modes
        .into_iter()
        .zip(["reference", "frozen", "trained"])
        .zip(steps)
    {
        println!("{name},{},{}", median(times), memory(&inputs, mode)?);
    }
    Ok(())
}
