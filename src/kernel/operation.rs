//! The operations that Burn dispatches to a backend.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};

use super::backend::LogProbKernel;
use super::forward::Save;
use super::head::{Head, HeadForm};

/// The form of a head, and what a call wants in addition to the log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct HeadOptions {
    pub form: HeadForm,
    /// Bytes of logits that a trainable head may keep for its backward. `None` is the
    /// default of [`choice`](super::choice).
    pub retained_bytes: Option<usize>,
    /// If true, the second output holds the by-products.
    pub statistics: bool,
}

/// The operations return log-probabilities `[rows]`, which have a gradient, and by-products
/// `[rows, 4]`, which have none.
///
/// The second output has no meaning if the caller did not ask for by-products. All targets must be
/// inside the vocabulary.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(feature = "_cube"),
    Remote: cfg(feature = "remote"),
    Autodiff
)]
pub(super) trait LogProbOps: Backend {
    /// Log-probabilities from hidden states `[rows, hidden]`.
    fn head_log_probs(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        targets: IntTensor<Self>,
        options: HeadOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Log-probabilities from logits `[rows, vocab]`. A row that is not counted may hold any
    /// values.
    fn logits_log_probs(
        logits: FloatTensor<Self>,
        targets: IntTensor<Self>,
        counted: BoolTensor<Self>,
        statistics: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// KL(π° ‖ π) of every row, `[rows]`. Policy π and reference π° each have their own hidden
    /// states and head. Only the policy gets a gradient. `targets` may hold any values; only the
    /// shape `[rows]` matters.
    #[allow(clippy::too_many_arguments, reason = "two heads")]
    fn head_kl(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        reference_hidden: FloatTensor<Self>,
        reference_weight: FloatTensor<Self>,
        reference_bias: FloatTensor<Self>,
        targets: IntTensor<Self>,
        form: HeadForm,
        reference_form: HeadForm,
    ) -> FloatTensor<Self>;
}

impl<B: LogProbKernel> LogProbOps for B {
    fn head_log_probs(
        hidden: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: FloatTensor<B>,
        targets: IntTensor<B>,
        options: HeadOptions,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        let head = Head::new(hidden, weight, bias, targets, options.form);
        B::head_forward(head, Save::Nothing, options.statistics).into_outputs()
    }

    fn logits_log_probs(
        logits: FloatTensor<B>,
        targets: IntTensor<B>,
        counted: BoolTensor<B>,
        statistics: bool,
    ) -> (FloatTensor<B>, FloatTensor<B>) {
        B::logits_forward(logits, targets, counted, statistics).into_outputs()
    }

    fn head_kl(
        hidden: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: FloatTensor<B>,
        reference_hidden: FloatTensor<B>,
        reference_weight: FloatTensor<B>,
        reference_bias: FloatTensor<B>,
        targets: IntTensor<B>,
        form: HeadForm,
        reference_form: HeadForm,
    ) -> FloatTensor<B> {
        B::kl_forward(
            Head::new(hidden, weight, bias, targets.clone(), form),
            Head::new(
                reference_hidden,
                reference_weight,
                reference_bias,
                targets,
                reference_form,
            ),
        )
    }
}
