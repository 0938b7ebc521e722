use crate::batch::Batch;
use crate::error::InvalidHyperparameter;
use crate::hyperparameter::non_negative;
use crate::objective::{LossOutput, Objective};

type Part<B> = (f64, Box<dyn Objective<B> + Send + Sync>);

/// A weighted sum of objectives over the same batch, such as MPO's (2411.10442).
///
/// ```text
/// loss   = Σ_k c_k·L_k
/// reward = that of the first part
/// ```
///
/// ```
/// # use burn_preference::*;
/// # let device = burn::tensor::Device::default();
/// # let y = |sum| SequenceLogProbs::from_values(&[sum], &[4], &device).unwrap();
/// # let policy = PolicyPair::new(y(-10.0), y(-30.0))?;
/// # let batch = policy.relative_to(PolicyPair::new(y(-12.0), y(-22.0))?)?;
/// // One pair: ρ_w = 2, ρ_l = −8, four tokens each.
/// let mpo = Mixture::new(0.8, DpoLossConfig::new().init()).and(0.2, BcoLossConfig::new().init());
/// let mpo = SftTerm::new(mpo, 1.0);
/// // 0.8·0.31326 + 0.2·0.96924 + 10/4
/// assert!((mpo.forward(batch).mean().into_scalar::<f32>() - 2.944457).abs() < 1e-5);
/// # Ok::<(), InvalidInput>(())
/// ```
pub struct Mixture<B: Batch> {
    first: Part<B>,
    rest: Vec<Part<B>>,
}

impl<B: Batch + Clone> Mixture<B> {
    /// `weight`·`objective`, to which others are added.
    ///
    /// # Panics
    ///
    /// Panics unless `weight` is a finite number ≥ 0; see [`try_new`](Self::try_new).
    pub fn new(weight: f64, objective: impl Objective<B> + Send + Sync + 'static) -> Self {
        Self::try_new(weight, objective).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`new`](Self::new), for a weight that comes from outside the program.
    ///
    /// # Errors
    ///
    /// `weight` is negative or not finite.
    pub fn try_new(
        weight: f64,
        objective: impl Objective<B> + Send + Sync + 'static,
    ) -> Result<Self, InvalidHyperparameter> {
        Ok(Self {
            first: part(weight, objective)?,
            rest: Vec::new(),
        })
    }

    /// + `weight`·`objective`.
    ///
    /// # Panics
    ///
    /// Panics unless `weight` is a finite number ≥ 0; see [`try_and`](Self::try_and).
    pub fn and(self, weight: f64, objective: impl Objective<B> + Send + Sync + 'static) -> Self {
        self.try_and(weight, objective)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`and`](Self::and), for a weight that comes from outside the program.
    ///
    /// # Errors
    ///
    /// `weight` is negative or not finite.
    pub fn try_and(
        mut self,
        weight: f64,
        objective: impl Objective<B> + Send + Sync + 'static,
    ) -> Result<Self, InvalidHyperparameter> {
        self.rest.push(part(weight, objective)?);
        Ok(self)
    }
}

fn part<B: Batch>(
    weight: f64,
    objective: impl Objective<B> + Send + Sync + 'static,
) -> Result<Part<B>, InvalidHyperparameter> {
    non_negative("weight", weight)?;
    Ok((weight, Box::new(objective)))
}

impl<B: Batch + Clone> Objective<B> for Mixture<B> {
    fn forward(&self, batch: B) -> LossOutput<B::Rewards> {
        let (weight, objective) = &self.first;
        let first = objective.forward(batch.clone());
        first.map_losses(|losses| {
            let first = losses * *weight;
            self.rest.iter().fold(first, |sum, (weight, objective)| {
                sum + objective.forward(batch.clone()).losses() * *weight
            })
        })
    }
}
