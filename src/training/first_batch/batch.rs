use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor, TensorData};

use super::finding::Finding;
use super::parameters;
use crate::error::{InvalidHyperparameter, InvalidInput};
use crate::hyperparameter::positive;
use crate::log_probs::CompletionMask;
use crate::reference::Frozen;
use crate::tokens::{Sequence, TokenTensors};

/// Labels of the rows.
#[derive(Debug, Clone)]
pub(super) enum Labels {
    None,
    Pairs,
    /// True for a desirable completion.
    Unpaired(Vec<bool>),
    /// True for a row with a candidate.
    Lists(Vec<bool>),
}

/// The first batch with what is known about it: the check before training.
///
/// | finding | from | needs |
/// |---|---|---|
/// | [`NothingCounts`](Finding::NothingCounts), [`EverythingCounts`](Finding::EverythingCounts), [`PaddingCounts`](Finding::PaddingCounts) | the masks | |
/// | [`OutsideVocabulary`](Finding::OutsideVocabulary) | ids | [`with_vocab`](Self::with_vocab) |
/// | [`WorseThanChance`](Finding::WorseThanChance) | the policy | the same, and 32 counted tokens |
/// | [`IdenticalSides`](Finding::IdenticalSides), [`PromptsDiffer`](Finding::PromptsDiffer) | pairs | [`pairs`](Self::pairs) |
/// | [`LengthTellsLabel`](Finding::LengthTellsLabel) | lengths and labels: p < 1%, which takes 8 pairs at least | [`pairs`](Self::pairs) or [`unpaired`](Self::unpaired) |
/// | [`SharedParameter`](Finding::SharedParameter) | the policy's parameters | [`with_parameters_of`](Self::with_parameters_of) |
/// | [`NoAdapter`](Finding::NoAdapter) | the same | [`with_adapters_of`](Self::with_adapters_of) |
/// | [`NoGradient`](Finding::NoGradient), [`Random`](Finding::Random) | two passes | |
/// | [`NotFinite`](Finding::NotFinite), [`AboveZero`](Finding::AboveZero), [`CountsOtherTokens`](Finding::CountsOtherTokens) | the same | |
/// | [`NotAtReference`](Finding::NotAtReference), [`LossNotFinite`](Finding::LossNotFinite) | a pass of policy and reference | [`check_against`](Self::check_against) |
/// | [`PaddingReaches`](Finding::PaddingReaches) | a pass with another id in the padding | a row with padding |
/// | [`AloneDiffers`](Finding::AloneDiffers) | the row with most padding, alone and without it | two rows, or padding |
/// | [`SeesTheFuture`](Finding::SeesTheFuture) | two passes with another last token | a row with two counted tokens |
/// | [`SeesNeighbours`](Finding::SeesNeighbours), [`PackedDiffers`](Finding::PackedDiffers) | packed rows | [`check_packed`](Self::check_packed) |
///
/// What follows from one finding is not reported again: a policy with dropout is not also told
/// that it differs from its reference. What a check had no means to look at stands in
/// [`Findings::not_checked`](super::Findings::not_checked).
///
/// The best batch has rows of unequal lengths, so that there is padding, and eight pairs or more.
#[derive(Debug, Clone)]
pub struct FirstBatch {
    pub(super) tokens: TokenTensors,
    pub(super) labels: Labels,
    /// What the model sees beside the tokens, of each row; empty where nobody said.
    pub(super) contexts: Vec<Option<[u8; 32]>>,
    pub(super) vocab: Option<usize>,
    /// Findings of the policy's parameters; none where nobody showed them.
    pub(super) parameters: Option<Vec<Finding>>,
    /// Number of adapters of a policy that is meant to have some.
    pub(super) adapters: Option<usize>,
    pub(super) tolerance: f64,
}

impl FirstBatch {
    /// A check of the `tokens` of a collated batch, or of [`TokenTensors`] of your own.
    ///
    /// # Errors
    ///
    /// There is no row, or fewer than two tokens; or shapes or devices differ.
    pub fn new(tokens: impl Into<TokenTensors>) -> Result<Self, InvalidInput> {
        let TokenTensors {
            ids,
            completion_mask,
            pad_mask,
        } = tokens.into();
        let [rows, time] = ids.dims();
        if rows == 0 || time < 2 {
            let found = format!("shape {:?}", ids.dims());
            return Err(InvalidInput::new("ids", "rows ≥ 1 and time ≥ 2", found));
        }
        Ok(Self {
            // Fields may have been assigned since.
            tokens: TokenTensors::new(ids, completion_mask, pad_mask)?,
            labels: Labels::None,
            contexts: Vec::new(),
            vocab: None,
            parameters: None,
            adapters: None,
            tolerance: 1e-4,
        })
    }

    /// Says that the rows are pairs: all chosen completions, then all rejected ones.
    ///
    /// # Errors
    ///
    /// The number of rows is odd.
    pub fn pairs(self) -> Result<Self, InvalidInput> {
        let [rows, _] = self.tokens.ids.dims();
        if rows % 2 != 0 {
            let expected = "an even number of rows: chosen, then rejected";
            return Err(InvalidInput::new("rows", expected, rows));
        }
        Ok(Self {
            labels: Labels::Pairs,
            ..self
        })
    }

    /// Says that the rows are unpaired completions: `desirable`, `[rows]`, is true for a desirable
    /// one.
    ///
    /// # Errors
    ///
    /// `desirable` is not `[rows]`, or its device fails.
    pub fn unpaired(self, desirable: &Tensor<1, Bool>) -> Result<Self, InvalidInput> {
        let [rows, _] = self.tokens.ids.dims();
        InvalidInput::check_shape("desirable", &[rows].into(), &desirable.shape())?;
        let desirable = InvalidInput::read("desirable", desirable)?;
        Ok(Self {
            labels: Labels::Unpaired(desirable.iter().collect()),
            ..self
        })
    }

    /// Says that the rows are lists of candidates, some of which may be absent: `present` as a batch
    /// of lists has it. An absent row need not count anything.
    ///
    /// # Errors
    ///
    /// `present` is not `[lists, candidates]` of as many rows, or its device fails.
    pub fn lists(self, present: &Tensor<2, Bool>) -> Result<Self, InvalidInput> {
        let [rows, _] = self.tokens.ids.dims();
        let [lists, candidates] = present.dims();
        if lists * candidates != rows {
            let expected = format!("[lists, candidates] of {rows} rows");
            let found = format!("shape {:?}", present.dims());
            return Err(InvalidInput::new("present", expected, found));
        }
        let present = InvalidInput::read("present", present)?;
        Ok(Self {
            labels: Labels::Lists(present.iter().collect()),
            ..self
        })
    }

    /// Says what the model sees beside the tokens: the contexts of the `sequences`, one per row. Sides
    /// of the same tokens and of two contexts, such as two pictures, are not
    /// [identical](Finding::IdenticalSides).
    ///
    /// # Errors
    ///
    /// There is another number of sequences than of rows.
    pub fn with_contexts_of(self, sequences: &[Sequence]) -> Result<Self, InvalidInput> {
        let [rows, _] = self.tokens.ids.dims();
        if sequences.len() != rows {
            return Err(InvalidInput::new("sequences", rows, sequences.len()));
        }
        let contexts = sequences.iter().map(|sequence| sequence.context().copied());
        Ok(Self {
            contexts: contexts.collect(),
            ..self
        })
    }

    /// Says that there are ids of `vocab` words: the rows of the model's embedding.
    pub fn with_vocab(self, vocab: usize) -> Self {
        Self {
            vocab: Some(vocab),
            ..self
        }
    }

    /// Looks at the parameters of `policy`, the module that the optimiser gets: whether one of them
    /// stands in two fields.
    pub fn with_parameters_of<M: Module>(self, policy: &M) -> Self {
        Self {
            parameters: Some(parameters::findings(policy)),
            ..self
        }
    }

    /// Says that the policy is meant to have LoRA adapters, looks whether `policy` has any, and at
    /// its parameters as [`with_parameters_of`](Self::with_parameters_of) does.
    pub fn with_adapters_of<M: Module>(self, policy: &M) -> Self {
        let adapters = Frozen::without_adapters(policy).map_or(0, |(_, count)| count);
        Self {
            adapters: Some(adapters),
            ..self.with_parameters_of(policy)
        }
    }

    /// Sets the tolerance: the nats, times the square root of its tokens, by which a completion's
    /// log-probability may differ between passes that should be equal. The default, 1e-4, is for f32: a hundred times
    /// what a product of another shape rounds otherwise. Models in bf16 or f16, and products in
    /// TF32, want about 0.05.
    ///
    /// # Errors
    ///
    /// `tolerance` is not a finite number > 0.
    pub fn with_tolerance(self, tolerance: f64) -> Result<Self, InvalidHyperparameter> {
        positive("tolerance", tolerance)?;
        Ok(Self { tolerance, ..self })
    }

    /// On the device of the batch, in its number type.
    pub(super) fn ids_of(&self, ids: Vec<i64>, shape: [usize; 2]) -> Tensor<2, Int> {
        let like = &self.tokens.ids;
        Tensor::from_data(TensorData::new(ids, shape), (&like.device(), like.dtype()))
    }

    pub(super) fn mask_of(&self, mask: Vec<bool>, shape: [usize; 2]) -> Tensor<2, Bool> {
        Tensor::from_data(TensorData::new(mask, shape), &self.tokens.ids.device())
    }

    pub(super) fn completion_mask_of(
        &self,
        counted: &[bool],
        shape: [usize; 2],
    ) -> Result<CompletionMask, InvalidInput> {
        let counted = TensorData::new(counted.to_vec(), shape);
        CompletionMask::from_data(counted, &self.tokens.ids.device())
    }
}
