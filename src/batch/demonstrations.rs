use burn::tensor::{Device, Tensor};

use super::traits::Batch;
use crate::error::InvalidInput;
use crate::log_probs::{TokenLogProbs, TokenStatistics};
use crate::needs::{Examples, Needs, Values};

/// Demonstrations: completions that the policy imitates, token by token.
///
/// The tokens of a conversation that count are those of the mask: see
/// [`Turns`](crate::data::Turns).
///
/// ```
/// use burn::tensor::{Bool, Device, Tensor};
/// use burn_preference::{Demonstrations, Objective, SftLossConfig, TokenLogProbs};
///
/// let device = Device::default();
/// let log_probs = Tensor::<2>::from_floats([[-1.0, -3.0], [-2.0, 0.0]], &device);
/// let mask = Tensor::<2, Bool>::from_bool([[true, true], [true, false]], &device);
/// let batch = Demonstrations::new(TokenLogProbs::new(log_probs, mask)?);
///
/// // Twice as much of the second token: (1 + 2·3 + 2)/3.
/// let batch = batch.weighted(Tensor::from_floats([[1.0, 2.0], [1.0, 2.0]], &device))?;
/// let loss = SftLossConfig::new().init().forward(batch).mean().into_scalar::<f32>();
/// assert!((loss - 3.0).abs() < 1e-6);
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
#[derive(Debug, Clone)]
pub struct Demonstrations {
    tokens: TokenLogProbs,
    weights: Option<Tensor<2>>,
    statistics: Option<TokenStatistics>,
}

impl Demonstrations {
    /// The completions with these log-probabilities of their tokens, one row each.
    pub fn new(tokens: TokenLogProbs) -> Self {
        Self {
            tokens,
            weights: None,
            statistics: None,
        }
    }

    /// Weighs every token. No gradient flows into the weights.
    ///
    /// ```text
    /// ℓ = Σ_t w_t·ln π(y_t)
    /// ```
    ///
    /// Lengths stay numbers of tokens: a mean is divided by them, not by Σ w. Weights of tokens that
    /// do not count may be anything. Weights that are there already are multiplied by these. Metrics
    /// are of the completions without weights.
    ///
    /// # Shapes
    ///
    /// - `weights`: `[batch, time − 1]`, a column per *predicted* token, as in [`TokenLogProbs`]
    ///
    /// # Errors
    ///
    /// `weights` has another shape or device.
    pub fn weighted(self, weights: Tensor<2>) -> Result<Self, InvalidInput> {
        self.check("weights", &weights.shape().dims::<2>(), &weights.device())?;
        let weights = weights.without_autodiff();
        let weights = match self.weights {
            Some(before) => before.clone() * weights.cast(before.dtype()),
            None => weights,
        };
        Ok(Self {
            weights: Some(weights),
            ..self
        })
    }

    /// Puts the statistics of the same pass beside the log-probabilities, for metrics: entropy and
    /// token accuracy.
    ///
    /// # Errors
    ///
    /// `statistics` are those of another shape or device.
    pub fn with_statistics(self, statistics: TokenStatistics) -> Result<Self, InvalidInput> {
        let mask = statistics.mask();
        self.check("statistics", &mask.dims(), &mask.device())?;
        Ok(Self {
            statistics: Some(statistics),
            ..self
        })
    }

    fn check(
        &self,
        name: &'static str,
        found: &[usize; 2],
        device: &Device,
    ) -> Result<(), InvalidInput> {
        let mask = self.tokens.mask();
        InvalidInput::check_shape(name, &mask.shape(), &(*found).into())?;
        InvalidInput::check_device(name, &mask.device(), device)
    }

    /// Log-probabilities of the tokens, without the weights.
    pub fn tokens(&self) -> &TokenLogProbs {
        &self.tokens
    }

    /// Weights of the tokens, `[batch, time − 1]`, if there are some.
    pub fn weights(&self) -> Option<Tensor<2>> {
        self.weights.clone()
    }

    /// Statistics of the tokens, if there are some.
    pub fn statistics(&self) -> Option<&TokenStatistics> {
        self.statistics.as_ref()
    }
}

impl Batch for Demonstrations {
    type Rewards = Tensor<1>;

    fn len(&self) -> usize {
        self.tokens.mask().dims()[0]
    }

    fn device(&self) -> Device {
        self.tokens.mask().device()
    }

    fn needs() -> Needs {
        Needs::new(Examples::Demonstrations, Values::LogProbs)
    }
}
