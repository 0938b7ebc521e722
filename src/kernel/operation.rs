//! The operations that Burn dispatches to a backend.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};

use super::backend::LogProbKernel;
use super::discrepancy::Discrepancy;
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

/// Which divergence compares two heads, and their forms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ComparisonOptions {
    pub kind: Discrepancy,
    pub form: HeadForm,
    pub reference_form: HeadForm,
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

    /// Divergence of two models at every row, `[rows]`. Policy and reference each have their own
    /// hidden states and head. Only the policy gets a gradient. `targets` may hold any values; only
    /// the shape `[rows]` matters.
    #[allow(clippy::too_many_arguments, reason = "two heads")]
    fn head_discrepancy(
        hidden: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        reference_hidden: FloatTensor<Self>,
        reference_weight: FloatTensor<Self>,
        reference_bias: FloatTensor<Self>,
        targets: IntTensor<Self>,
        options: ComparisonOptions,
    ) -> FloatTensor<Self>;

    /// Divergence of two models at every row, `[rows]`, from logits `[rows, vocab]`. Only the
    /// policy gets a gradient. A row that is not counted may hold any values.
    fn logits_discrepancy(
        policy: FloatTensor<Self>,
        reference: FloatTensor<Self>,
        counted: BoolTensor<Self>,
        kind: Discrepancy,
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

    fn head_discrepancy(
        hidden: FloatTensor<B>,
        weight: FloatTensor<B>,
        bias: FloatTensor<B>,
        reference_hidden: FloatTensor<B>,
        reference_weight: FloatTensor<B>,
        reference_bias: FloatTensor<B>,
        targets: IntTensor<B>,
        options: ComparisonOptions,
    ) -> FloatTensor<B> {
        let reference = [reference_hidden, reference_weight, reference_bias];
        let policy = Head::new(hidden, weight, bias, targets.clone(), options.form);
        let [hidden, weight, bias] = reference;
        let reference = Head::new(hidden, weight, bias, targets, options.reference_form);
        B::head_comparison(options.kind, policy, reference, false).discrepancy
    }

    fn logits_discrepancy(
        policy: FloatTensor<B>,
        reference: FloatTensor<B>,
        counted: BoolTensor<B>,
        kind: Discrepancy,
    ) -> FloatTensor<B> {
        B::logits_comparison(kind, policy, reference, counted).discrepancy
    }
}
