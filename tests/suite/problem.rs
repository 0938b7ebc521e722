//! A small head with everything around it, in plain f64 and in ours.

use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use burn_preference::log_probs::WithStatistics;
use burn_preference::{LmHead, TokenLogProbs, TokenStatistics};

use crate::support::{ZipEqual, assert_close, bools, device, ints, to_vec};

/// A small problem in f64: everything that the head needs, and what multiplies each column.
#[derive(Debug, Clone)]
pub struct Problem {
    pub batch: usize,
    pub time: usize,
    pub vocab: usize,
    pub width: usize,
    pub hidden: Vec<f64>,
    /// `[vocab, width]`
    pub weight: Vec<f64>,
    pub bias: Option<Vec<f64>>,
    pub tokens: Vec<usize>,
    pub mask: Vec<bool>,
    pub shaping: Shaping,
}

/// What the head makes of W h + b: `cap·tanh(scale·x/cap) / temperature`.
#[derive(Debug, Clone, Copy)]
pub struct Shaping {
    pub scale: f64,
    pub softcap: Option<f64>,
    pub temperature: f64,
}

impl Shaping {
    pub const NONE: Self = Self {
        scale: 1.0,
        softcap: None,
        temperature: 1.0,
    };

    /// The logit of x, and its slope there.
    fn of(self, x: f64) -> (f64, f64) {
        let x = self.scale * x;
        let (capped, slope) = match self.softcap {
            None => (x, 1.0),
            Some(cap) => (cap * (x / cap).tanh(), (x / cap).cosh().powi(-2)),
        };
        (
            capped / self.temperature,
            self.scale * slope / self.temperature,
        )
    }

    pub fn head(self, head: LmHead) -> LmHead {
        let head = head.with_logit_scale(self.scale).unwrap();
        let head = head.with_temperature(self.temperature).unwrap();
        match self.softcap {
            Some(cap) => head.with_softcap(cap).unwrap(),
            None => head,
        }
    }
}

/// Deterministic numbers in −1..1, without a pattern that a stride could hide.
pub fn noise(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

impl Problem {
    pub fn new([batch, time, vocab, width]: [usize; 4], seed: u64) -> Self {
        let fraction = noise(batch * time, seed + 3);
        Self {
            batch,
            time,
            vocab,
            width,
            hidden: noise(batch * time * width, seed),
            weight: noise(vocab * width, seed + 1)
                .iter()
                .map(|x| 3.0 * x)
                .collect(),
            bias: Some(noise(vocab, seed + 2)),
            tokens: (0..batch * time).map(|i| (i * 7919 + 3) % vocab).collect(),
            mask: fraction.iter().map(|&x| x > -0.5).collect(),
            shaping: Shaping::NONE,
        }
    }

    pub fn shaped(self, shaping: Shaping) -> Self {
        Self { shaping, ..self }
    }

    pub fn without_bias(self) -> Self {
        Self { bias: None, ..self }
    }

    /// Eighths, which every number type holds exactly: what is left is the kernel's own rounding.
    pub fn coarsen(&mut self) {
        let values = [&mut self.hidden, &mut self.weight].into_iter().flatten();
        for x in values.chain(self.bias.iter_mut().flatten()) {
            *x = (*x * 8.0).round() / 8.0;
        }
    }

    pub fn factor(position: usize) -> f64 {
        0.25 + (position % 5) as f64
    }

    pub fn tokens(&self) -> Tensor<2, Int> {
        ints(&self.tokens).reshape([self.batch, self.time])
    }

    pub fn mask(&self) -> Tensor<2, Bool> {
        bools(&self.mask).reshape([self.batch, self.time])
    }

    pub fn floats<const D: usize>(values: &[f64], shape: [usize; D], dtype: DType) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), (&device(), dtype))
    }

    /// The logits of a row, each with its slope.
    pub fn logits(&self, row: usize) -> Vec<(f64, f64)> {
        let hidden = &self.hidden[row * self.width..][..self.width];
        (0..self.vocab)
            .map(|v| {
                let words = &self.weight[v * self.width..][..self.width];
                let product: f64 = words.iter().zip(hidden).map(|(w, h)| w * h).sum();
                let x = product + self.bias.as_ref().map_or(0.0, |bias| bias[v]);
                self.shaping.of(x)
            })
            .collect()
    }

    /// The same in plain f64: columns, by-products, and the gradients of Σ factor·log-prob.
    pub fn scalar(&self) -> Result {
        let columns = self.batch * (self.time - 1);
        let mut result = Result {
            log_probs: vec![0.0; columns],
            statistics: [(); 4].map(|()| vec![0.0; columns]),
            hidden: vec![0.0; self.hidden.len()],
            weight: vec![0.0; self.weight.len()],
            bias: vec![0.0; self.vocab],
        };
        for b in 0..self.batch {
            for t in 0..self.time - 1 {
                let (row, column) = (b * self.time + t, b * (self.time - 1) + t);
                if !self.mask[row + 1] {
                    continue;
                }
                let y = self.tokens[row + 1];
                let (x, slopes): (Vec<f64>, Vec<f64>) = self.logits(row).into_iter().unzip();
                let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let z: f64 = x.iter().map(|x| (x - max).exp()).sum();
                let p: Vec<f64> = x.iter().map(|x| (x - max).exp() / z).collect();
                result.log_probs[column] = x[y] - max - z.ln();
                let surprise = |&p: &f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
                result.statistics[0][column] = p.iter().map(surprise).sum();
                result.statistics[1][column] = p.iter().map(|p| p * p).sum::<f64>().ln();
                let first = x.iter().position(|&x| x == max);
                result.statistics[2][column] = f64::from(u8::from(first == Some(y)));
                result.statistics[3][column] = x.iter().sum::<f64>() / x.len() as f64;
                for (v, p) in p.into_iter().enumerate() {
                    let delta = f64::from(u8::from(v == y)) - p;
                    let delta = Self::factor(column) * delta * slopes[v];
                    result.bias[v] += delta;
                    for k in 0..self.width {
                        let (h, w) = (row * self.width + k, v * self.width + k);
                        result.hidden[h] += delta * self.weight[w];
                        result.weight[w] += delta * self.hidden[h];
                    }
                }
            }
        }
        result
    }

    /// Ours, as tensors, those with gradients as leaves. The weight is given in either layout.
    pub fn tensors(&self, how: How) -> Tensors {
        let grad = |tensor: Tensor<2>, wanted: bool| match (wanted, how.checkpointed) {
            (false, _) => tensor,
            (true, false) => tensor.autodiff().require_grad(),
            (true, true) => {
                let device = device().autodiff().gradient_checkpointing();
                let data = tensor.into_data();
                Tensor::from_data(data, (&device, how.dtype)).require_grad()
            }
        };
        let rows = [self.batch * self.time, self.width];
        let hidden = grad(Self::floats(&self.hidden, rows, how.dtype), how.hidden);
        let weight = Self::floats(&self.weight, [self.vocab, self.width], how.dtype);
        let words_first = !matches!(how.layout, Layout::Transposed);
        let weight = grad(how.layout.of(weight), how.weight);
        let bias = self.bias.as_ref().map(|bias| {
            let bias = Self::floats(bias, [1, self.vocab], how.dtype);
            grad(bias, how.weight)
        });
        let mut head = if words_first {
            LmHead::new(weight.clone())
        } else {
            LmHead::transposed(weight.clone())
        };
        if let Some(bias) = &bias {
            head = head.with_bias(bias.clone().reshape([self.vocab]));
        }
        let head = self
            .shaping
            .head(head.with_retained_bytes(how.retained_bytes));
        let states = hidden.clone().reshape([self.batch, self.time, self.width]);
        Tensors {
            hidden,
            weight,
            bias,
            output: (states, head),
        }
    }

    /// Results of Σ factor·log-prob. The weight's gradient comes back as `[vocab, width]`.
    pub fn run(&self, how: How) -> Result {
        let tensors = self.tensors(how);
        let (states, head) = tensors.output.clone();
        let (tokens, mask) = (self.tokens(), self.mask());
        let (log_probs, statistics) = if how.from_logits {
            let logits = head.logits(states).unwrap();
            TokenLogProbs::from_output(WithStatistics(logits), tokens, mask).unwrap()
        } else {
            TokenLogProbs::from_output(WithStatistics((states, head)), tokens, mask).unwrap()
        };
        let columns = log_probs.log_probs();
        let [hidden, weight, bias] = tensors.gradients(how, &columns, Self::factor);
        Result {
            log_probs: to_vec(columns),
            statistics: values(&statistics),
            hidden,
            weight,
            bias,
        }
    }

    #[track_caller]
    pub fn check(&self, how: How, tolerance: f64) {
        let (ours, expected) = (self.run(how), self.scalar());
        let what = |name: &str| format!("{name} of {how:?}");
        assert_close(
            &ours.log_probs,
            &expected.log_probs,
            tolerance,
            &what("log-probs"),
        );
        for (index, (ours, expected)) in ours
            .statistics
            .iter()
            .zip_equal(&expected.statistics)
            .enumerate()
        {
            let what = what(&format!("statistic {index}"));
            if index == 2 && how.dtype != DType::F64 {
                continue; // Which of two near-equal logits is the largest depends on rounding.
            }
            assert_close(ours, expected, tolerance, &what);
        }
        if how.hidden {
            assert_close(&ours.hidden, &expected.hidden, tolerance, &what("d hidden"));
        }
        if how.weight {
            assert_close(&ours.weight, &expected.weight, tolerance, &what("d weight"));
            let expected = if self.bias.is_some() {
                &expected.bias[..]
            } else {
                &[]
            };
            assert_close(&ours.bias, expected, tolerance, &what("d bias"));
        }
    }
}

/// Hidden states and a head, and what the crate takes.
pub struct Tensors {
    hidden: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<2>>,
    pub output: (Tensor<3>, LmHead),
}

impl Tensors {
    /// Gradients of hidden states, weight and bias of Σ factor·column; empty for those that are not
    /// wanted. That of the weight is `[vocab, width]`.
    pub fn gradients(
        &self,
        how: How,
        columns: &Tensor<2>,
        factor: impl Fn(usize) -> f64,
    ) -> [Vec<f64>; 3] {
        if !(how.hidden || how.weight) {
            assert!(!columns.is_autodiff(), "no graph without gradients");
            return [const { Vec::new() }; 3];
        }
        let factors: Vec<f64> = (0..columns.shape().num_elements()).map(factor).collect();
        let factors = Problem::floats(&factors, columns.dims(), columns.dtype());
        let grads = (columns.clone() * factors).sum().backward();
        let of = |tensor: &Tensor<2>| tensor.grad(&grads).unwrap();
        let mut gradients = [const { Vec::new() }; 3];
        if how.hidden {
            gradients[0] = to_vec(of(&self.hidden));
        }
        if how.weight {
            let weight = of(&self.weight);
            assert_eq!(weight.dtype(), how.dtype);
            gradients[1] = to_vec(if matches!(how.layout, Layout::Transposed) {
                weight.transpose()
            } else {
                weight
            });
            let bias = self.bias.as_ref().map(|bias| to_vec(of(bias)));
            gradients[2] = bias.unwrap_or_default();
        }
        gradients
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Result {
    pub log_probs: Vec<f64>,
    pub statistics: [Vec<f64>; 4],
    pub hidden: Vec<f64>,
    pub weight: Vec<f64>,
    pub bias: Vec<f64>,
}

pub fn values(statistics: &TokenStatistics) -> [Vec<f64>; 4] {
    [
        statistics.entropy(),
        statistics.collisions().log_probs(),
        statistics.top1(),
        statistics.mean_logits(),
    ]
    .map(to_vec)
}

/// Where the words stand.
#[derive(Debug, Clone, Copy)]
pub enum Layout {
    WordsFirst,
    /// `[vocab, width]` as a view of a wider, longer and transposed buffer.
    View,
    /// `[width, vocab]`
    Transposed,
}

impl Layout {
    fn of(self, weight: Tensor<2>) -> Tensor<2> {
        match self {
            Self::WordsFirst => weight,
            Self::Transposed => weight.transpose(),
            Self::View => {
                let [vocab, width] = weight.dims();
                let around = Tensor::full([2, width], f64::NAN, (&weight.device(), weight.dtype()));
                let all = Tensor::cat(vec![around.clone(), weight, around], 0);
                // Stored by columns from here on.
                let stored = all.transpose() + 0.0;
                stored.transpose().narrow(0, 2, vocab)
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "a checklist")]
pub struct How {
    pub dtype: DType,
    pub layout: Layout,
    pub hidden: bool,
    pub weight: bool,
    pub retained_bytes: usize,
    pub checkpointed: bool,
    pub from_logits: bool,
}

pub const TRAINABLE: How = How {
    dtype: DType::F64,
    layout: Layout::WordsFirst,
    hidden: true,
    weight: true,
    retained_bytes: 0,
    checkpointed: false,
    from_logits: false,
};

pub const FROZEN: How = How {
    weight: false,
    ..TRAINABLE
};

pub const REFERENCE: How = How {
    hidden: false,
    ..FROZEN
};

pub const LAYOUTS: [Layout; 3] = [Layout::WordsFirst, Layout::View, Layout::Transposed];
