//! A head and its hidden states, as tensors and as a backend has them.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, DispatchTensor};
use burn::tensor::Tensor;

/// The step of a head from x = W h + b to logits: `softcap(scale·x) / temperature`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shaping {
    pub scale: f64,
    /// The c of `c·tanh(x/c)`. `None` leaves x as it is.
    pub softcap: Option<f64>,
    pub temperature: f64,
}

impl Shaping {
    pub(crate) const NONE: Self = Self {
        scale: 1.0,
        softcap: None,
        temperature: 1.0,
    };

    /// Whether the logits are equal to x.
    #[cfg(any(feature = "flex", feature = "_cube"))]
    pub(crate) fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// ∂logit/∂x at 0, and everywhere without a softcap.
    pub(crate) fn factor(self) -> f64 {
        self.scale / self.temperature
    }

    /// The u of `∂logit/∂x = factor·(1 − (u·logit)²)`; u is 0 without a softcap.
    pub(crate) fn bend(self) -> f64 {
        self.softcap.map_or(0.0, |cap| self.temperature / cap)
    }
}

/// The properties of a head that are not tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct HeadForm {
    /// If true, the weight is `[vocab, hidden]`; otherwise the weight is `[hidden, vocab]`.
    pub words_first: bool,
    /// If true, the head has a bias; otherwise the bias tensor is a placeholder.
    pub biased: bool,
    pub shaping: Shaping,
}

/// Hidden states, weight, bias and targets, as tensors of one backend.
#[derive(Debug, Clone)]
pub(super) struct Head<B: Backend> {
    /// Hidden states, `[rows, hidden]`.
    pub hidden: FloatTensor<B>,
    /// Weight, `[vocab, hidden]` or `[hidden, vocab]`.
    pub weight: FloatTensor<B>,
    /// Bias, `[vocab]`, or a placeholder if the head has none.
    pub bias: FloatTensor<B>,
    /// Target of each row, `[rows]`.
    pub targets: IntTensor<B>,
    pub form: HeadForm,
}

impl<B: Backend> Head<B> {
    pub(super) fn new(
        hidden: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: FloatTensor<B>,
        targets: IntTensor<B>,
        form: HeadForm,
    ) -> Self {
        Self {
            hidden,
            weight,
            bias,
            targets,
            form,
        }
    }
}

/// Hidden states `[rows, hidden]` and a head, as tensors.
#[derive(Debug, Clone)]
pub(crate) struct HeadTensors {
    pub hidden: Tensor<2>,
    pub weight: Tensor<2>,
    pub bias: Option<Tensor<1>>,
    pub words_first: bool,
    pub shaping: Shaping,
}

impl HeadTensors {
    pub(crate) fn into_dispatch(self) -> ([DispatchTensor; 3], HeadForm) {
        let form = HeadForm {
            words_first: self.words_first,
            biased: self.bias.is_some(),
            shaping: self.shaping,
        };
        let like = (&self.hidden.device(), self.hidden.dtype());
        let bias = self.bias.unwrap_or_else(|| Tensor::zeros([1], like));
        let [hidden, weight] = [self.hidden, self.weight].map(Tensor::into_dispatch);
        ([hidden, weight, bias.into_dispatch()], form)
    }
}
