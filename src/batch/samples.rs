use burn::tensor::{Bool, Device, Tensor};

use super::grouped_reward::GroupedReward;
use super::traits::{Batch, Rewards, sealed::Sealed};
use crate::error::InvalidInput;
use crate::log_probs::{RelativeTokenLogProbs, TokenLogProbs, TokenStatistics};
use crate::needs::{Examples, Needs, Values};

/// Samples: completions that a model drew, one row each, with its log-probabilities of their tokens
/// and a reward among those of the same prompt.
///
/// The model that drew them is the *sampler* μ: usually the policy as it was when they were drawn.
/// `L` is [`TokenLogProbs`] of the policy, or [`RelativeTokenLogProbs`] of the policy against a
/// reference, which an objective with a KL term needs.
///
/// ```
/// use burn::tensor::{Bool, Device, Tensor};
/// use burn_preference::batch::{GroupedReward, Samples};
/// use burn_preference::{GrpoLossConfig, Objective, TokenLogProbs};
///
/// let device = Device::default();
/// let mask = Tensor::<2, Bool>::from_bool([[true, true], [true, false]], &device);
/// let of = |values| TokenLogProbs::new(Tensor::from_floats(values, &device), mask.clone());
/// let sampler = of([[-1.0, -3.0], [-2.0, 0.0]])?;
/// let policy = of([[-1.0, -3.0], [-2.0, 0.0]])?; // the first step: nothing has changed yet
///
/// let rewards = GroupedReward::of_groups(&[1.0, 0.0], &[0, 0])?;
/// let batch = Samples::new(policy, sampler, &rewards)?;
/// let output = GrpoLossConfig::new().init().forward(batch);
/// let ratios = output.rewards().ratios().into_data().to_vec::<f32>().unwrap();
/// assert_eq!(ratios, [1.0; 4]);
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
#[derive(Debug, Clone)]
pub struct Samples<L = TokenLogProbs> {
    log_probs: L,
    /// The policy against the sampler.
    update: RelativeTokenLogProbs,
    rewards: Vec<GroupedReward>,
    statistics: Option<TokenStatistics>,
}

/// Log-probabilities of the tokens of samples: [`TokenLogProbs`] of the policy, or
/// [`RelativeTokenLogProbs`] of the policy against a reference.
///
/// It is sealed.
pub trait SampleLogProbs: sealed::SampleLogProbs {}

impl<L: sealed::SampleLogProbs> SampleLogProbs for L {}

mod sealed {
    use super::{RelativeTokenLogProbs, TokenLogProbs, Values};

    pub trait SampleLogProbs {
        const VALUES: Values;

        fn against_reference(&self) -> Option<&RelativeTokenLogProbs>;
    }

    impl SampleLogProbs for TokenLogProbs {
        const VALUES: Values = Values::LogProbs;

        fn against_reference(&self) -> Option<&RelativeTokenLogProbs> {
            None
        }
    }

    impl SampleLogProbs for RelativeTokenLogProbs {
        const VALUES: Values = Values::LogRatios;

        fn against_reference(&self) -> Option<&RelativeTokenLogProbs> {
            Some(self)
        }
    }
}

impl Samples {
    /// Puts the policy's log-probabilities beside the sampler's and a reward for each row. No
    /// gradient flows into the sampler.
    ///
    /// The masks are not compared, since that would wait for the device: give both sides the same
    /// one. The metric `length_mismatches` shows rows of which they count unequally many tokens.
    ///
    /// # Errors
    ///
    /// Shapes or devices differ, or there is not one reward per row.
    pub fn new(
        policy: TokenLogProbs,
        sampler: TokenLogProbs,
        rewards: &[GroupedReward],
    ) -> Result<Self, InvalidInput> {
        let (ours, theirs) = (policy.mask(), sampler.mask());
        InvalidInput::check_shape("sampler", &ours.shape(), &theirs.shape())?;
        InvalidInput::check_device("sampler", &ours.device(), &theirs.device())?;
        let [rows, _] = ours.dims();
        if rows != rewards.len() {
            let expected = format!("{rows}, one per row");
            return Err(InvalidInput::new("rewards", expected, rewards.len()));
        }
        Ok(Self {
            update: policy.clone().relative_to(sampler)?,
            log_probs: policy,
            rewards: rewards.to_vec(),
            statistics: None,
        })
    }

    /// Puts the reference's log-probabilities of the same tokens beside the policy's. No gradient
    /// flows into them.
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn relative_to(
        self,
        reference: TokenLogProbs,
    ) -> Result<Samples<RelativeTokenLogProbs>, InvalidInput> {
        Ok(Samples {
            log_probs: self.log_probs.relative_to(reference)?,
            update: self.update,
            rewards: self.rewards,
            statistics: self.statistics,
        })
    }
}

impl<L> Samples<L> {
    /// Puts the statistics of the same pass beside the log-probabilities, for metrics: entropy and
    /// token accuracy.
    ///
    /// # Errors
    ///
    /// `statistics` are those of another shape or device.
    pub fn with_statistics(self, statistics: TokenStatistics) -> Result<Self, InvalidInput> {
        let (here, there) = (self.policy().mask(), statistics.mask());
        InvalidInput::check_shape("statistics", &here.shape(), &there.shape())?;
        InvalidInput::check_device("statistics", &here.device(), &there.device())?;
        Ok(Self {
            statistics: Some(statistics),
            ..self
        })
    }

    /// Log-probabilities of the policy.
    pub fn policy(&self) -> &TokenLogProbs {
        self.update.policy()
    }

    /// Log-probabilities of the sampler; no gradient reaches them.
    pub fn sampler(&self) -> &TokenLogProbs {
        self.update.reference()
    }

    /// ln π/μ of every token, 0 where it does not count; `[batch, time − 1]`, nats.
    pub fn log_ratios(&self) -> Tensor<2> {
        self.update.log_ratios()
    }

    /// The policy's log-probabilities, against a reference if there is one.
    pub fn log_probs(&self) -> &L {
        &self.log_probs
    }

    /// The reward of each row.
    pub fn rewards(&self) -> &[GroupedReward] {
        &self.rewards
    }

    /// A number of each reward as a column, `[batch, 1]`, in the number type of the log-probabilities.
    pub(crate) fn column(&self, number: impl Fn(&GroupedReward) -> f64) -> Tensor<2> {
        let numbers: Vec<f64> = self.rewards.iter().map(number).collect();
        let like = self.policy().log_probs();
        let numbers = Tensor::<1>::from_data(numbers.as_slice(), (&like.device(), like.dtype()));
        numbers.without_autodiff().unsqueeze_dim(1)
    }

    /// Statistics of the tokens, if there are some.
    pub fn statistics(&self) -> Option<&TokenStatistics> {
        self.statistics.as_ref()
    }
}

impl<L: SampleLogProbs> Samples<L> {
    /// The policy against the reference, where the batch has one.
    pub fn against_reference(&self) -> Option<&RelativeTokenLogProbs> {
        self.log_probs.against_reference()
    }
}

impl<L: SampleLogProbs> Batch for Samples<L> {
    type Rewards = Ratios;

    fn len(&self) -> usize {
        self.rewards.len()
    }

    fn device(&self) -> Device {
        self.policy().mask().device()
    }

    fn needs() -> Needs {
        Needs::new(Examples::Samples, L::VALUES)
    }
}

/// Ratios π/μ of a batch of samples, and which of them an objective clips: what it logs instead of
/// implicit rewards, of which samples have none.
///
/// A ratio is one of a token, `[batch, time − 1]`, or one of a completion, `[batch, 1]`.
#[derive(Debug, Clone)]
pub struct Ratios {
    values: Tensor<2>,
    counted: Tensor<2, Bool>,
    clipped: [Tensor<2, Bool>; 2],
    kl: Option<(Tensor<2>, Tensor<2, Bool>)>,
}

impl Ratios {
    /// Takes ratios, which of them count, and which are clipped from below and from above.
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn new(
        ratios: Tensor<2>,
        counted: Tensor<2, Bool>,
        [low, high]: [Tensor<2, Bool>; 2],
    ) -> Result<Self, InvalidInput> {
        for (name, marks) in [("counted", &counted), ("low", &low), ("high", &high)] {
            InvalidInput::check_shape(name, &ratios.shape(), &marks.shape())?;
            InvalidInput::check_device(name, &ratios.device(), &marks.device())?;
        }
        Ok(Self::of(ratios, counted, [low, high]))
    }

    /// Takes tensors that fit.
    pub(crate) fn of(
        ratios: Tensor<2>,
        counted: Tensor<2, Bool>,
        clipped: [Tensor<2, Bool>; 2],
    ) -> Self {
        Self {
            values: ratios.without_autodiff(),
            counted: counted.without_autodiff(),
            clipped: clipped.map(Tensor::without_autodiff),
            kl: None,
        }
    }

    /// Puts the KL term of every token beside them, and which tokens count, `[batch, time − 1]` each.
    ///
    /// # Errors
    ///
    /// Shapes or devices differ.
    pub fn with_kl(self, kl: Tensor<2>, counted: Tensor<2, Bool>) -> Result<Self, InvalidInput> {
        InvalidInput::check_shape("counted", &kl.shape(), &counted.shape())?;
        InvalidInput::check_device("counted", &kl.device(), &counted.device())?;
        Ok(self.beside_kl(kl, counted))
    }

    /// [`Self::with_kl`], of tensors that fit.
    pub(crate) fn beside_kl(self, kl: Tensor<2>, counted: Tensor<2, Bool>) -> Self {
        Self {
            kl: Some((kl.without_autodiff(), counted.without_autodiff())),
            ..self
        }
    }

    /// The ratios π/μ, without autodiff.
    pub fn ratios(&self) -> Tensor<2> {
        self.values.clone()
    }

    /// Mask of the ratios that count.
    pub fn counted(&self) -> Tensor<2, Bool> {
        self.counted.clone()
    }

    /// Masks of the ratios that are clipped from below, and from above.
    pub fn clipped(&self) -> &[Tensor<2, Bool>; 2] {
        &self.clipped
    }

    /// The KL term of every token and the mask of those that count, if there is one.
    pub fn kl(&self) -> Option<&(Tensor<2>, Tensor<2, Bool>)> {
        self.kl.as_ref()
    }
}

impl Sealed for Ratios {}

/// They were made without autodiff.
impl Rewards for Ratios {
    fn without_autodiff(self) -> Self {
        self
    }
}
