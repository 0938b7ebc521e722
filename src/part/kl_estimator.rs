use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::log_probs::RelativeTokenLogProbs;
use crate::math::{exp_excess, exp_up_to};

/// Estimate of KL(π ‖ π°) by the tokens of samples, with d = ln π°/π of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// e^d − d − 1, Schulman's k3: GRPO's (2402.03300). Never negative, and 0 where π = π°. Constant
    /// past d = 80.
    ///
    /// Its gradient is not that of the KL, but near π = π° of the KL in the other direction.
    K3,
    /// w·(e^d − d − 1), w the ratio π/μ, through which its gradient flows as well (DeepSeek-V3.2,
    /// 2512.02556): with ratios of tokens its mean has the gradient of the KL. The default of
    /// TRL 1.16. Both factors are constant past an exponent of 40.
    #[default]
    WeightedK3,
}

/// Two factors that are each below e^40, and a number of nats, have a product in f32.
const MAX_FACTOR: f64 = 40.0;

impl KlEstimator {
    /// The estimate of each token, `[batch, time − 1]`, nats. `log_ratios` are ln π/μ of the same
    /// tokens, or one of each completion, `[batch, 1]`.
    pub fn of_tokens(&self, against: &RelativeTokenLogProbs, log_ratios: Tensor<2>) -> Tensor<2> {
        let d = -against.log_ratios();
        match self {
            Self::K3 => exp_excess(d, 80.0),
            Self::WeightedK3 => exp_excess(d, MAX_FACTOR) * exp_up_to(log_ratios, MAX_FACTOR),
        }
    }
}
