use burn::tensor::Tensor;

use crate::batch::{Column, Pair, PolicyPair, Ranked, ReferencedPair};
use crate::log_probs::{RelativeLogProbs, SequenceLogProbs};
use crate::objective::{LossOutput, Objective};

/// A reference-free objective over batches that have a reference, which it does not see: for a
/// [`Mixture`](super::Mixture) with objectives that need it.
///
/// ```
/// # use burn_preference::*;
/// // SimPO beside DPO, over pairs with a reference.
/// let simpo = PolicySide(SimpoLossConfig::new().init());
/// let mixture = Mixture::new(1.0, DpoLossConfig::new().init())?.and(0.5, simpo)?;
/// # fn of_pairs(_: impl Objective<ReferencedPair>) {}
/// # of_pairs(mixture);
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct PolicySide<O>(
    /// The objective that takes the policy's side alone.
    pub O,
);

impl<O: Objective<PolicyPair>> Objective<ReferencedPair> for PolicySide<O> {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        self.0.forward(batch.policy())
    }

    fn whole_batch(&self) -> bool {
        self.0.whole_batch()
    }
}

impl<O> Objective<Ranked<RelativeLogProbs<2>>> for PolicySide<O>
where
    O: Objective<Ranked<SequenceLogProbs<2>>>,
{
    fn forward(&self, batch: Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>> {
        self.0.forward(batch.policy())
    }

    fn whole_batch(&self) -> bool {
        self.0.whole_batch()
    }
}

/// An objective over batches with a column that it has no use for: for a
/// [`Mixture`](super::Mixture) with objectives that want the column.
///
/// MPO (Wang et al., 2411.10442) is DPO, BCO with its shift δ, and an SFT term:
///
/// ```
/// # use burn::tensor::Tensor;
/// # use burn_preference::*;
/// # let device = burn::tensor::Device::default();
/// # let y = |sum| SequenceLogProbs::from_values(&[sum], &[4], &device).unwrap();
/// # let policy = PolicyPair::new(y(-10.0), y(-30.0))?;
/// # let batch = policy.relative_to(PolicyPair::new(y(-12.0), y(-22.0))?)?;
/// // One pair: ρ_w = 2, ρ_l = −8, four tokens each; δ = −0.3, the mean of the rewards so far.
/// let batch = WithShift::new(batch, Tensor::from_floats([-0.3], &device))?;
/// let dpo = WithoutColumn(DpoLossConfig::new().init());
/// let bco = BcoLossConfig::new().init();
/// let mpo = SftTerm::new(Mixture::new(0.8, dpo)?.and(0.2, bco)?, 1.0)?;
/// // 0.8·0.31326 + 0.2·(−ln σ(0.5) − ln σ(0.5)) + 10/4
/// let loss = mpo.forward(batch).mean().into_scalar::<f32>();
/// assert!((loss - 2.940240).abs() < 1e-5);
/// # Ok::<(), Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct WithoutColumn<O>(
    /// The objective that takes the batch without the column.
    pub O,
);

impl<C: Column, O: Objective<C::Inner>> Objective<C> for WithoutColumn<O> {
    fn forward(&self, batch: C) -> LossOutput<C::Rewards> {
        self.0.forward(batch.into_batch())
    }

    fn whole_batch(&self) -> bool {
        self.0.whole_batch()
    }
}
