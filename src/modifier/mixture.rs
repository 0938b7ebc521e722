use std::fmt;
use std::sync::Arc;

use crate::batch::Batch;
use crate::error::InvalidHyperparameter;
use crate::hyperparameter::non_negative;
use crate::objective::{LossOutput, Objective};

/// A weighted sum of objectives over the same batch, such as MPO's (2411.10442).
///
/// ```text
/// loss   = Σ_k c_k·L_k
/// reward = that of the first part
/// ```
///
/// Objectives that take different batches mix through [`PolicySide`](super::PolicySide) and
/// [`WithoutColumn`](super::WithoutColumn). A clone shares its parts.
///
/// ```
/// # use burn_preference::*;
/// # let device = burn::tensor::Device::default();
/// # let y = |sum| SequenceLogProbs::from_values(&[sum], &[4], &device).unwrap();
/// # let policy = PolicyPair::new(y(-10.0), y(-30.0))?;
/// # let batch = policy.relative_to(PolicyPair::new(y(-12.0), y(-22.0))?)?;
/// // One pair: ρ_w = 2, ρ_l = −8.
/// let dpo = DpoLossConfig::new().init();
/// let mixture = Mixture::new(0.8, dpo)?.and(0.2, BcoLossConfig::new().init())?;
/// // 0.8·0.31326 + 0.2·0.96924
/// assert!((mixture.forward(batch).mean().into_scalar::<f32>() - 0.444457).abs() < 1e-5);
/// # Ok::<(), Error>(())
/// ```
pub struct Mixture<B: Batch> {
    first: Term<B>,
    rest: Vec<Term<B>>,
}

struct Term<B: Batch> {
    weight: f64,
    objective: Arc<dyn Objective<B>>,
}

impl<B: Batch> Clone for Term<B> {
    fn clone(&self) -> Self {
        Self {
            weight: self.weight,
            objective: Arc::clone(&self.objective),
        }
    }
}

impl<B: Batch> Clone for Mixture<B> {
    fn clone(&self) -> Self {
        Self {
            first: self.first.clone(),
            rest: self.rest.clone(),
        }
    }
}

/// As a list of weights and objectives.
impl<B: Batch> fmt::Debug for Mixture<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mixture ")?;
        f.debug_list().entries(self.terms()).finish()
    }
}

impl<B: Batch> Term<B> {
    fn new(
        weight: f64,
        objective: impl Objective<B> + 'static,
    ) -> Result<Self, InvalidHyperparameter> {
        non_negative("weight", weight)?;
        Ok(Self {
            weight,
            objective: Arc::new(objective),
        })
    }
}

impl<B: Batch> Mixture<B> {
    /// A mixture of one part, `weight`·`objective`; [`and`](Self::and) adds others.
    ///
    /// # Errors
    ///
    /// `weight` is negative or not finite.
    pub fn new(
        weight: f64,
        objective: impl Objective<B> + 'static,
    ) -> Result<Self, InvalidHyperparameter> {
        Ok(Self {
            first: Term::new(weight, objective)?,
            rest: Vec::new(),
        })
    }

    /// Adds the part `weight`·`objective` to the mixture.
    ///
    /// # Errors
    ///
    /// `weight` is negative or not finite.
    pub fn and(
        mut self,
        weight: f64,
        objective: impl Objective<B> + 'static,
    ) -> Result<Self, InvalidHyperparameter> {
        self.rest.push(Term::new(weight, objective)?);
        Ok(self)
    }

    /// Every weight with its objective, in the order in which they were added.
    pub fn terms(&self) -> impl Iterator<Item = (f64, &dyn Objective<B>)> {
        let all = std::iter::once(&self.first).chain(&self.rest);
        all.map(|term| (term.weight, &*term.objective))
    }
}

impl<B: Batch + Clone> Objective<B> for Mixture<B> {
    fn forward(&self, batch: B) -> LossOutput<B::Rewards> {
        let Term { weight, objective } = &self.first;
        let first = objective.forward(batch.clone());
        first.map_losses(|losses| {
            let first = losses * *weight;
            self.rest.iter().fold(first, |sum, term| {
                sum + term.objective.forward(batch.clone()).losses() * term.weight
            })
        })
    }

    fn whole_batch(&self) -> bool {
        self.terms().any(|(_, objective)| objective.whole_batch())
    }
}
