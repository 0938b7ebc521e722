use crate::batch::{Ratios, SampleLogProbs, Samples, WithStepTokens};
use crate::declare::{objective, over_step};
use crate::log_probs::RelativeTokenLogProbs;
use crate::math::bounded_exp;
use crate::needs::Needs;
use crate::objective::LossOutput;
use crate::part::{Advantage, KlEstimator, RatioClip, RatioLevel, TokenNormalization};

objective! {
    /// Policy gradients on scored groups, GRPO (Shao et al., 2402.03300) and its relatives: samples of
    /// the policy itself, and the mean reward of a prompt's samples as the baseline.
    ///
    /// ```text
    /// A      = (r − r̄)/(s + ε)                 r̄, s: mean and deviation of the group's rewards
    /// w      = π/μ                             of a token; μ is the sampler
    /// loss_t = −min(w·A, clamp(w, 1 − ε_low, 1 + ε_high)·A) + β·w·(e^d − d − 1)     d = ln π°/π
    /// loss   = Σ_t loss_t·examples / tokens    mean over the batch: Σ loss_t / tokens
    /// ```
    ///
    /// Each line is a field: [`Advantage`], [`RatioLevel`], [`RatioClip`] with `clip_low` and
    /// `clip_high`, [`KlEstimator`] with `beta`, [`TokenNormalization`]. Objectives with a name of their own:
    ///
    /// | name | fields that are not the default | `loss_type` of TRL |
    /// |---|---|---|
    /// | DAPO (2503.14476) | `clip_high` 0.28 | `dapo`, its default |
    /// | GRPO (2402.03300) | `normalization` per sequence, `kl` K3, `beta` 0.04 | `grpo` |
    /// | Dr. GRPO (2503.20783) | `advantage` centred, `normalization` by a constant | `dr_grpo` |
    /// | GSPO (2507.18071) | `level` sequence, `normalization` per sequence, clips of 3e-4 and 4e-4 | `grpo` |
    /// | CISPO (2506.13585) | `clip` weight, `clip_low` 1, `clip_high` 4 | `cispo` |
    /// | RLOO (2402.14740) | `advantage` leave one out, `level` completion, `normalization` per sequence | `RLOOTrainer` |
    ///
    /// The defaults are those of TRL 1.16. In its RLOO the KL is a part of the reward,
    /// r − β·Σ_t ln μ/π°: subtract it from the rewards. Here β is the weight of a term of the
    /// loss, for every level.
    ///
    /// While the policy is its sampler, every ratio is 1, the value says nothing, and the gradient is
    /// that of REINFORCE with a baseline: −A·∇ln π. Look at the metric `reward` of the next samples,
    /// not at the loss.
    ///
    /// The advantages come from all samples of a step, before it is cut: see
    /// [`GroupedReward`](crate::batch::GroupedReward). With a [`WithStepTokens`] column the tokens are
    /// those of the whole step, too; without it they are those of the batch. Past e^80 a ratio is
    /// constant, and has no gradient. A loss with β > 0 takes batches with a reference, one with β = 0 those
    /// without it.
    ///
    /// # Panics
    ///
    /// `forward` panics if β > 0 and the batch has no reference, which a config from a file cannot
    /// build.
    example samples "" = -0.329936, "A = ±½/(√½ + 1e-4), w = 1.1 and ½: (−4·1.1 + 2·0.8)·A/6";
    example samples ".with_advantage(Advantage::LeaveOneOut)" = -0.466667, "A = ±1: (−4·1.1 + 2·0.8)/6";
    example samples ".with_clip(RatioClip::Weight)" = 0.141401, "A = ±0.707007, ln π = −1 and −2: (4·1.1·1 − 2·0.8·2)·A/6";
    pub struct GrpoLoss from GrpoLossConfig
        takes [
            Samples,
            WithStepTokens<Samples>,
            Samples<RelativeTokenLogProbs>,
            WithStepTokens<Samples<RelativeTokenLogProbs>>
        ] only where_the_reference_is
    {
        /// The advantage of a sample over the others of its group.
        advantage / with_advantage: Advantage = Advantage::Normalized(1e-4), choice;
        /// The level of a ratio: a token or a completion.
        level / with_level: RatioLevel = RatioLevel::Token;
        /// The clip of a policy that has moved away.
        clip / with_clip: RatioClip = RatioClip::Objective, choice;
        /// ε_low in \[0, 1\]: a ratio is clipped below 1 − ε_low; at 1, never.
        clip_low / with_clip_low: f64 = 0.2, fraction;
        /// ε_high ≥ 0: a ratio is clipped above 1 + ε_high.
        clip_high / with_clip_high: f64 = 0.2, non_negative;
        /// β ≥ 0: weight of the KL term against a reference; at 0 there is none.
        beta / with_beta: f64 = 0.0, non_negative;
        /// The estimate of the KL.
        kl / with_kl: KlEstimator = KlEstimator::WeightedK3;
        /// The mean over tokens.
        normalization / with_normalization: TokenNormalization = TokenNormalization::Token, choice;
    }
}

impl GrpoLoss {
    /// A reference is there exactly if β asks for it.
    fn where_the_reference_is(&self, needs: &Needs) -> bool {
        needs.has_reference() == (self.beta > 0.0)
    }

    fn output<L: SampleLogProbs>(
        &self,
        batch: &Samples<L>,
        tokens_per_example: Option<f64>,
    ) -> LossOutput<Ratios> {
        let tokens = batch.policy();
        let advantages = self.advantage.column(batch);
        let log_ratios = self.level.log_ratios(batch);
        let ratios = bounded_exp(log_ratios.clone());
        let clips = [self.clip_low, self.clip_high];
        let clipped = self.clip.clipped(&ratios, clips, &advantages);
        let mut logged = Ratios::of(ratios.clone(), self.level.counted(batch), clipped);
        let objective = self
            .clip
            .objective(ratios, clips, advantages, tokens.log_probs());
        let mut losses = -objective.expand(tokens.mask().shape());
        if self.beta > 0.0 {
            let against = batch.against_reference();
            let against = against.expect("β > 0 needs a batch with a reference");
            let kl = self.kl.of_tokens(against, log_ratios);
            logged = logged.beside_kl(kl.clone(), tokens.mask());
            losses = losses + kl * self.beta;
        }
        let losses = self
            .normalization
            .losses(losses, tokens, tokens_per_example);
        LossOutput::new(losses, logged)
    }
}

over_step!(GrpoLoss, normalization: Samples, Samples<RelativeTokenLogProbs>);
