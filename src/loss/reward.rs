use burn::tensor::Tensor;

use crate::batch::{Ranked, RewardPair, WithMargin, WithPreference, WithTies};
use crate::declare::objective;
use crate::math::upcast;
use crate::objective::{LossOutput, Objective};
use crate::part::{LabelNoise, TieModel};

objective! {
    /// A reward model from pairs, by Bradley and Terry's model (Ouyang et al., 2203.02155, Eq. 1).
    ///
    /// ```text
    /// loss   = −ln σ(h) + λ·(r_w + r_l)²     h = r_w − r_l,  with label noise as in DPO
    /// reward = r
    /// ```
    ///
    /// It takes the model's rewards of the two completions, a [`RewardPair`], instead of
    /// log-probabilities. With a [`WithMargin`] column the first term is that of h − m (Llama 2,
    /// 2307.09288); with a [`WithPreference`] column of p it is p·loss(h) + (1 − p)·loss(−h). For
    /// ties see [`BradleyTerryTiesLoss`], for lists [`RewardRankingLoss`].
    ///
    /// The first term only knows the difference of two rewards, so that their level is free. λ pulls
    /// the sum of each pair to 0 (Eisenstein et al., 2312.09244). It is TRL's
    /// `center_rewards_coefficient`: TRL recommends 0.01, and it is off by default, there and here.
    /// Rewards in half precision are upcast to f32.
    example rewards "" = 0.201413, "r = 2 and 0.5: −ln σ(1.5)";
    example rewards ".with_centering_weight(0.01)" = 0.263913, "the same + 0.01·2.5²";
    pub struct BradleyTerryLoss from BradleyTerryLossConfig
        takes [RewardPair, WithMargin<RewardPair>, WithPreference<RewardPair>]
    {
        /// λ ≥ 0: the weight of the centring.
        centering_weight / with_centering_weight: f64 = 0.0, non_negative;
        /// Assumption about flipped labels.
        label_noise / with_label_noise: LabelNoise = LabelNoise::Clean, choice;
    }
}

/// `losses` + λ·s² of the sums s of two rewards; 0·∞ is nothing where there is no term.
fn centered(losses: Tensor<1>, sum: Tensor<1>, weight: f64) -> Tensor<1> {
    if weight == 0.0 {
        return losses;
    }
    losses + sum.square() * weight
}

fn sum(rewards: &RewardPair) -> Tensor<1> {
    rewards.chosen.clone() + rewards.rejected.clone()
}

impl BradleyTerryLoss {
    fn output(&self, losses: Tensor<1>, rewards: RewardPair) -> LossOutput<RewardPair> {
        let losses = centered(losses, sum(&rewards), self.centering_weight);
        LossOutput::new(losses, rewards)
    }
}

impl Objective<RewardPair> for BradleyTerryLoss {
    fn forward(&self, batch: RewardPair) -> LossOutput<RewardPair> {
        let rewards = batch.map(upcast);
        self.output(self.label_noise.losses(rewards.margin()), rewards)
    }
}

impl Objective<WithMargin<RewardPair>> for BradleyTerryLoss {
    fn forward(&self, batch: WithMargin<RewardPair>) -> LossOutput<RewardPair> {
        let rewards = batch.batch.map(upcast);
        let h = rewards.margin();
        let excess = h.clone() - batch.margin.cast(h.dtype());
        self.output(self.label_noise.losses(excess), rewards)
    }
}

impl Objective<WithPreference<RewardPair>> for BradleyTerryLoss {
    fn forward(&self, batch: WithPreference<RewardPair>) -> LossOutput<RewardPair> {
        let rewards = batch.batch.map(upcast);
        let h = rewards.margin();
        let p = batch.win_probability.cast(h.dtype());
        self.output(self.label_noise.graded_losses(h, p), rewards)
    }
}

objective! {
    /// A reward model from pairs of which some are ties: [`BradleyTerryLoss`] with a third outcome.
    ///
    /// ```text
    /// loss   = −ln P(labelled outcome) + λ·(r_w + r_l)²     P of h = r_w − r_l
    /// reward = r
    /// ```
    ///
    /// P is a [`TieModel`], as [`RaoKupperLoss`](crate::RaoKupperLoss) and
    /// [`DavidsonLoss`](crate::DavidsonLoss) have it for log-ratios (Chen et al., 2409.17431); ties
    /// are a [`WithTies`] column. No peer has this loss. Metrics do not look at that column: a tie
    /// counts as accurate where r_w > r_l.
    example untied_rewards "" = 0.512459, "r = 2 and 0.5, a win: −ln σ(1.5 − ln 3)";
    example untied_rewards ".with_tie_model(TieModel::Davidson(1.0))" = 0.773742, "ln(1 + e^−1.5 + 2·e^−0.75)";
    pub struct BradleyTerryTiesLoss from BradleyTerryTiesLossConfig
        takes [WithTies<RewardPair>]
    {
        /// Model of the probability of a tie.
        tie_model / with_tie_model: TieModel = TieModel::RaoKupper(3.0), choice;
        /// λ ≥ 0: the weight of the centring.
        centering_weight / with_centering_weight: f64 = 0.0, non_negative;
    }
}

impl Objective<WithTies<RewardPair>> for BradleyTerryTiesLoss {
    fn forward(&self, batch: WithTies<RewardPair>) -> LossOutput<RewardPair> {
        let rewards = batch.batch.map(upcast);
        let losses = self.tie_model.losses(rewards.margin(), batch.tied);
        let losses = centered(losses, sum(&rewards), self.centering_weight);
        LossOutput::new(losses, rewards)
    }
}

objective! {
    /// A reward model from ranked lists, by Plackett and Luce's model.
    ///
    /// ```text
    /// loss   = −Σ_k [r_k − ln(e^r_k + Σ_{s_j < s_k} e^r_j)] + λ·(2·mean r)²
    /// reward = r
    /// ```
    ///
    /// The lists are [`Ranked`] whose candidates are rewards, `[batch, candidates]`. For two candidates
    /// it is [`BradleyTerryLoss`], centring included; the centring of longer lists is this crate's
    /// own. InstructGPT (2203.02155, Eq. 1) takes all pairs of a list instead: give them as the pairs
    /// of one batch. Candidates of equal score do not compete, as in
    /// [`PlackettLuceLoss`](crate::PlackettLuceLoss). A list without an order has the centring
    /// alone, and one without candidates has loss 0.
    example ranked_rewards "" = 0.201413, "r = 2 and 0.5, in that order: −ln σ(1.5)";
    pub struct RewardRankingLoss from RewardRankingLossConfig
        takes [Ranked<Tensor<2>>]
    {
        /// λ ≥ 0: the weight of the centring.
        centering_weight / with_centering_weight: f64 = 0.0, non_negative;
    }
}

impl Objective<Ranked<Tensor<2>>> for RewardRankingLoss {
    fn forward(&self, batch: Ranked<Tensor<2>>) -> LossOutput<Tensor<2>> {
        let rewards = batch.rewards();
        let twice_mean = batch.sum_present(rewards.clone() * batch.share(&rewards)) * 2;
        let losses = centered(batch.order_nll(&rewards), twice_mean, self.centering_weight);
        LossOutput::new(losses, rewards)
    }
}
