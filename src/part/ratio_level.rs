use burn::tensor::{Bool, Shape, Tensor};
use serde::{Deserialize, Serialize};

use crate::batch::Samples;
use crate::math::sum_columns;

/// Level of a ratio π/μ of policy and sampler: one of a token, or one of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum RatioLevel {
    /// Each token has its own: PPO, GRPO.
    #[default]
    Token,
    /// All tokens of a completion have the geometric mean of theirs, (π(y)/μ(y))^(1/length): GSPO
    /// (Zheng et al., 2507.18071). It is much nearer to 1, so that its clips are: the authors take
    /// 3e-4 and 4e-4.
    Sequence,
    /// All tokens of a completion have the ratio of the completion, π(y)/μ(y): RLOO.
    Completion,
}

impl RatioLevel {
    /// ln π/μ of the samples: `[batch, time − 1]`, 0 where a token does not count, or one of each
    /// completion, `[batch, 1]`; nats.
    pub fn log_ratios<L>(&self, samples: &Samples<L>) -> Tensor<2> {
        let of_tokens = samples.log_ratios();
        let of_completion = match self {
            Self::Token => return of_tokens,
            Self::Sequence => sum_columns(of_tokens) / samples.policy().sequence().divisor(),
            Self::Completion => sum_columns(of_tokens),
        };
        of_completion.unsqueeze_dim(1)
    }

    /// Mask of the ratios that count. Each completion does.
    pub(crate) fn counted<L>(self, samples: &Samples<L>) -> Tensor<2, Bool> {
        let mask = samples.policy().mask();
        match self {
            Self::Token => mask,
            Self::Sequence | Self::Completion => {
                let [batch, _] = mask.dims();
                // Not an array, of which `full` takes no 0.
                Tensor::full(Shape::new([batch, 1]), true, &mask.device())
            }
        }
    }
}
