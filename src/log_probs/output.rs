use burn::tensor::{Bool, Int, Tensor};

use super::packed::{self, PackedRows};
use super::predictions::Walked;
use super::{LmHead, head, token};
use crate::error::InvalidInput;

/// What the forward of a model returns: logits, or the hidden states before them.
///
/// | type | holds |
/// |---|---|
/// | `Tensor<3>` | logits `[rows, time, vocab]` |
/// | `(Tensor<3>, LmHead)` | hidden states `[rows, time, hidden]` and the head: all logits never exist at once |
///
/// It is sealed.
pub trait ModelOutput: sealed::ModelOutput {}

impl<O: sealed::ModelOutput> ModelOutput for O {}

pub(crate) mod sealed {
    use super::{Bool, Int, InvalidInput, PackedRows, Tensor, Walked};

    pub trait ModelOutput: Sized {
        /// A row per sequence.
        fn padded(
            self,
            ids: Tensor<2, Int>,
            completion_mask: Tensor<2, Bool>,
            statistics: bool,
        ) -> Result<Walked, InvalidInput>;

        /// Rows in which prompts stand once.
        fn packed(self, rows: &PackedRows, statistics: bool) -> Result<Walked, InvalidInput>;

        fn without_autodiff(self) -> Self;
    }
}

impl sealed::ModelOutput for Tensor<3> {
    fn padded(
        self,
        ids: Tensor<2, Int>,
        completion_mask: Tensor<2, Bool>,
        statistics: bool,
    ) -> Result<Walked, InvalidInput> {
        token::walk(self, ids, completion_mask, statistics)
    }

    fn packed(self, rows: &PackedRows, statistics: bool) -> Result<Walked, InvalidInput> {
        packed::walk_logits(self, rows, statistics)
    }

    fn without_autodiff(self) -> Self {
        Tensor::without_autodiff(self)
    }
}

impl sealed::ModelOutput for (Tensor<3>, LmHead) {
    fn padded(
        self,
        ids: Tensor<2, Int>,
        completion_mask: Tensor<2, Bool>,
        statistics: bool,
    ) -> Result<Walked, InvalidInput> {
        let (hidden, head) = self;
        head::walk(hidden, &head, ids, completion_mask, statistics)
    }

    fn packed(self, rows: &PackedRows, statistics: bool) -> Result<Walked, InvalidInput> {
        let (hidden, head) = self;
        packed::walk_hidden(hidden, &head, rows, statistics)
    }

    fn without_autodiff(self) -> Self {
        let (hidden, head) = self;
        (hidden.without_autodiff(), head.without_autodiff())
    }
}
