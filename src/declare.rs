//! The macro that declares an objective: its config, the batches that it takes, its documentation
//! tests. And the one that implements a mean over tokens, of a batch and of a step.

use std::any::Any;
use std::sync::Arc;

use crate::batch::Batch;
use crate::objective::Objective;

/// The objective as one over `B`, if that is `T`: for a batch type that is chosen at run time.
pub(crate) fn over<T, B>(objective: Arc<dyn Objective<T>>) -> Option<Arc<dyn Objective<B>>>
where
    T: Batch + 'static,
    B: Batch + 'static,
{
    let objective: Box<dyn Any> = Box::new(objective);
    objective.downcast().ok().map(|objective| *objective)
}

/// The batches of the documentation's examples, as hidden lines of code.
macro_rules! example_batch {
    (referenced) => {
        concat!(
            "// `batch` is a `ReferencedPair` of one pair: ρ_w = 2, ρ_l = −8, four tokens each.\n",
            "# let device = burn::tensor::Device::default();\n",
            "# let y = |sum| SequenceLogProbs::from_values(&[sum], &[4], &device).unwrap();\n",
            "# let policy = PolicyPair::new(y(-10.0), y(-30.0))?;\n",
            "# let batch = policy.relative_to(PolicyPair::new(y(-12.0), y(-22.0))?)?;\n",
        )
    };
    (policy) => {
        concat!(
            "// `batch` is a `PolicyPair` of one pair, four tokens each: ℓ_w = 4·ln ½, ℓ_l = 4·ln ¼.\n",
            "# let device = burn::tensor::Device::default();\n",
            "# let y = |sum| SequenceLogProbs::from_values(&[sum], &[4], &device).unwrap();\n",
            "# let batch = PolicyPair::new(y(-4.0 * 2_f32.ln()), y(-4.0 * 4_f32.ln()))?;\n",
        )
    };
    (with_gold) => {
        concat!(
            $crate::declare::example_batch!(policy),
            "// A `WithNll` column: a gold completion of ℓ = −2, four tokens.\n",
            "# let batch = WithNll::new(batch, y(-2.0))?;\n",
        )
    };
    (scored) => {
        concat!(
            $crate::declare::example_batch!(referenced),
            "// A `WithScores` column: s_w = 2, s_l = 1.\n",
            "# let score = |s| burn::tensor::Tensor::<1>::from_floats([s], &device);\n",
            "# let scores = Pair::new(score(2.0), score(1.0))?;\n",
            "# let batch = WithScores::new(batch, scores)?;\n",
        )
    };
    (untied) => {
        concat!(
            $crate::declare::example_batch!(referenced),
            "// A `WithTies` column: not a tie.\n",
            "# use burn::tensor::{Bool, Tensor};\n",
            "# let tied = Tensor::<1, Bool>::from_bool([false], &device);\n",
            "# let batch = WithTies::new(batch, tied)?;\n",
        )
    };
    (with_mean_margin) => {
        concat!(
            $crate::declare::example_batch!(referenced),
            "// A `WithMeanMargin` column: M₀ = 0.\n",
            "# let mean = burn::tensor::Tensor::<1>::zeros([1], &device);\n",
            "# let batch = WithMeanMargin::new(batch, mean)?;\n",
        )
    };
    (with_sequence_kl) => {
        concat!(
            $crate::declare::example_batch!(referenced),
            "// A `WithSequenceKl` column: K_w = 1, K_l = 3.\n",
            "# let kl = |k| burn::tensor::Tensor::<1>::from_floats([k], &device);\n",
            "# let kl = Pair::new(kl(1.0), kl(3.0))?;\n",
            "# let batch = WithSequenceKl::new(batch, kl)?;\n",
        )
    };
    (rewards) => {
        concat!(
            "// `batch` is a `RewardPair` of one pair: a reward model says 2 and 0.5.\n",
            "# let device = burn::tensor::Device::default();\n",
            "# let says = |r| burn::tensor::Tensor::<1>::from_floats([r], &device);\n",
            "# let batch = RewardPair::new(says(2.0), says(0.5))?;\n",
        )
    };
    (untied_rewards) => {
        concat!(
            $crate::declare::example_batch!(rewards),
            "// A `WithTies` column: not a tie.\n",
            "# use burn::tensor::{Bool, Tensor};\n",
            "# let tied = Tensor::<1, Bool>::from_bool([false], &device);\n",
            "# let batch = WithTies::new(batch, tied)?;\n",
        )
    };
    (ranked_rewards) => {
        concat!(
            "// `batch` is a `Ranked` of two candidates: a reward model says 2 and 0.5, scores 1 and 0.\n",
            "# use burn::tensor::{Bool, Device, Tensor};\n",
            "# let device = Device::default();\n",
            "# let rewards = Tensor::<2>::from_floats([[2.0, 0.5]], &device);\n",
            "# let scores = Tensor::<2>::from_floats([[1.0, 0.0]], &device);\n",
            "# let present = Tensor::<2, Bool>::from_bool([[true, true]], &device);\n",
            "# let batch = Ranked::new(rewards, scores, present)?;\n",
        )
    };
    (demonstrations) => {
        concat!(
            "// `batch` is a `Demonstrations` of two: four tokens of −1 nat each, two of −2.\n",
            "# use burn::tensor::{Bool, Device, Tensor};\n",
            "# let device = Device::default();\n",
            "# let log_probs = Tensor::<2>::from_floats([[-1.0; 4], [-2.0; 4]], &device);\n",
            "# let counted = [[true; 4], [true, true, false, false]];\n",
            "# let mask = Tensor::<2, Bool>::from_bool(counted, &device);\n",
            "# let batch = Demonstrations::new(TokenLogProbs::new(log_probs, mask)?);\n",
        )
    };
    (undesirable_policy) => {
        concat!(
            "// `batch` is a `SequenceLogProbs` of one completion to unlearn: ℓ = −10, four tokens.\n",
            "# let device = burn::tensor::Device::default();\n",
            "# let batch = SequenceLogProbs::from_values(&[-10.0], &[4], &device)?;\n",
        )
    };
    (undesirable) => {
        concat!(
            "// `batch` is a `RelativeLogProbs` of one completion to unlearn: ρ = 2, four tokens.\n",
            "# let device = burn::tensor::Device::default();\n",
            "# let y = |sum| SequenceLogProbs::from_values(&[sum], &[4], &device).unwrap();\n",
            "# let batch = y(-10.0).relative_to(y(-12.0))?;\n",
        )
    };
    (scored_with_value) => {
        concat!(
            "// `batch` is a `Scored` of one completion with a `WithValue` column: ρ = 2, r = 3, V = 2.5.\n",
            "# use burn::tensor::{Device, Tensor};\n",
            "# let device = Device::default();\n",
            "# let y = |sum| SequenceLogProbs::from_values(&[sum], &[4], &device).unwrap();\n",
            "# let relative = y(-10.0).relative_to(y(-12.0))?;\n",
            "# let batch = Scored::new(relative, Tensor::from_floats([3.0], &device))?;\n",
            "# let batch = WithValue::new(batch, Tensor::from_floats([2.5], &device))?;\n",
        )
    };
    (quantiles) => {
        concat!(
            "// `batch` is a `Scored` of one completion, better than ¾ of the reference's: ρ = 2.\n",
            "# use burn::tensor::{Device, Tensor};\n",
            "# let device = Device::default();\n",
            "# let y = |sum| SequenceLogProbs::from_values(&[sum], &[4], &device).unwrap();\n",
            "# let relative = y(-10.0).relative_to(y(-12.0))?;\n",
            "# let batch = Scored::new(relative, Tensor::from_floats([0.75], &device))?;\n",
        )
    };
    (samples) => {
        concat!(
            "// `batch` is a `Samples` of one prompt: rewards 1 and 0, π/μ of each token 1.1 and ½.\n",
            "# use burn::tensor::{Bool, Device, Tensor};\n",
            "# let device = Device::default();\n",
            "# let counted = [[true; 4], [true, true, false, false]];\n",
            "# let of = |first: f32, second: f32| {\n",
            "#     let mask = Tensor::<2, Bool>::from_bool(counted, &device);\n",
            "#     TokenLogProbs::new(Tensor::from_floats([[first; 4], [second; 4]], &device), mask)\n",
            "# };\n",
            "# let sampler = of(-1.0 - 1.1_f32.ln(), -2.0 - 0.5_f32.ln())?;\n",
            "# let rewards = GroupedReward::of_groups(&[1.0, 0.0], &[0, 0])?;\n",
            "# let batch = Samples::new(of(-1.0, -2.0)?, sampler, &rewards)?;\n",
        )
    };
    (unpaired) => {
        concat!(
            "// `batch` is an `Unpaired`: a desirable one with ρ = 10, an undesirable one with ρ = 0.\n",
            "# use burn::tensor::{Bool, Device, Tensor};\n",
            "# let device = Device::default();\n",
            "# let y = |sums| SequenceLogProbs::from_values(sums, &[4, 4], &device).unwrap();\n",
            "# let relative = y(&[-10.0, -30.0]).relative_to(y(&[-20.0, -30.0]))?;\n",
            "# let labels = Tensor::<1, Bool>::from_bool([true, false], &device);\n",
            "# let batch = Unpaired::new(relative, labels)?;\n",
        )
    };
    (unpaired_with_baseline) => {
        concat!(
            $crate::declare::example_batch!(unpaired),
            "// A `WithBaseline` column: z₀ = 0.\n",
            "# let batch = WithBaseline::new(batch, Tensor::<1>::zeros([1], &device))?;\n",
        )
    };
    (ranked_policy) => {
        concat!(
            "// `batch` is a `Ranked` of two candidates, two tokens each: ℓ = −1 and −4, scores 0.3 and 0.9.\n",
            "# use burn::tensor::{Bool, Device, Tensor};\n",
            "# let device = Device::default();\n",
            "# let y = SequenceLogProbs::from_values(&[-1.0, -4.0], &[2, 2], &device)?;\n",
            "# let scores = Tensor::<2>::from_floats([[0.3, 0.9]], &device);\n",
            "# let present = Tensor::<2, Bool>::from_bool([[true, true]], &device);\n",
            "# let batch = Ranked::new(y.split_candidates(2)?, scores, present)?;\n",
        )
    };
    (ranked) => {
        concat!(
            "// `batch` is a `Ranked` of two candidates: ρ = 2 and −8, scores 1 and 0.\n",
            "# use burn::tensor::{Bool, Device, Tensor};\n",
            "# let device = Device::default();\n",
            "# let y = |sums| SequenceLogProbs::from_values(sums, &[4, 4], &device).unwrap();\n",
            "# let ours = y(&[-10.0, -30.0]).split_candidates(2)?;\n",
            "# let relative = ours.relative_to(y(&[-12.0, -22.0]).split_candidates(2)?)?;\n",
            "# let scores = Tensor::<2>::from_floats([[1.0, 0.0]], &device);\n",
            "# let present = Tensor::<2, Bool>::from_bool([[true, true]], &device);\n",
            "# let batch = Ranked::new(relative, scores, present)?;\n",
        )
    };
    (ranked_tied) => {
        concat!(
            "// `batch` is a `Ranked` of three candidates: ρ = 0, 10 and 0, scores 1, 1 and 0.\n",
            "# use burn::tensor::{Bool, Device, Tensor};\n",
            "# let device = Device::default();\n",
            "# let y = |sums| SequenceLogProbs::from_values(sums, &[4, 4, 4], &device).unwrap();\n",
            "# let ours = y(&[-10.0, -12.0, -30.0]).split_candidates(3)?;\n",
            "# let relative = ours.relative_to(y(&[-10.0, -22.0, -30.0]).split_candidates(3)?)?;\n",
            "# let scores = Tensor::<2>::from_floats([[1.0, 1.0, 0.0]], &device);\n",
            "# let present = Tensor::<2, Bool>::from_bool([[true, true, true]], &device);\n",
            "# let batch = Ranked::new(relative, scores, present)?;\n",
        )
    };
}
pub(crate) use example_batch;

/// Declares an objective and its config in Burn's idiom: `Config::new().with_x(…).init()`.
///
/// `takes` lists the batches of the objective, the one with the fewest columns first; `only` names a
/// method that says whether a config builds it over batches of such needs, where values decide.
/// A field reads `name / with_name: Type = default, range;` (the range is a function of
/// [`hyperparameter`](crate::hyperparameter), or missing where every value is valid). A number
/// whose every default would be another objective is a `requires …` after the config's name, and
/// an argument of `new`. Saved configs may lack fields (they take their defaults) but not have
/// unknown ones; without the required one, `try_init` fails.
/// An `example` becomes a documentation test: the batch, `of` the required number, what follows
/// `Config::new(…)`, the expected mean loss, and the arithmetic behind it. The page of an objective
/// also says what its symbols are, and where the batch comes from.
macro_rules! objective {
    (
        $(#[$meta:meta])*
        $(example $batch:ident $(of $such:literal)? $with_fields:literal = $value:literal, $arithmetic:literal;)+
        pub struct $loss:ident from $config:ident
            takes [$($taken:ty),+]
            $(only $only:ident)?
            $(requires $required:ident / $with_required:ident: f64, $required_range:ident,
                $required_doc:literal)?
        {
            $(
                $(#[$field_meta:meta])*
                $field:ident / $with:ident: $ty:ty = $default:expr $(, $range:ident)?;
            )*
        }
    ) => {
        $(#[$meta])*
        ///
        /// # Symbols
        ///
        /// ℓ is the log-probability of a completion in nats, ℓ̄ is ℓ per token, ° marks the reference,
        /// and ρ = ℓ − ℓ° is the log-ratio; w is the chosen completion of a pair, l the rejected one.
        /// [All symbols](crate::loss#symbols) stand in one table.
        ///
        /// # Example
        ///
        #[doc = concat!("[`", stringify!($config), "`] builds the objective.")]
        /// [One step](crate#one-step) shows how a model gives a batch; the guide's chapter on
        /// [choosing](crate::guide::choosing) says when to take which objective.
        $(
            #[doc = concat!(
                "\n\n```\n",
                "# use burn_preference::*;\n",
                $crate::declare::example_batch!($batch),
                "let loss = ", stringify!($config), "::new(", $(stringify!($such),)? ")",
                $with_fields, ".init();\n",
                "let mean = loss.forward(batch).mean().into_scalar::<f32>();\n",
                "// ", $arithmetic, "\n",
                "assert!((mean - ", stringify!($value), ").abs() < 1e-5);\n",
                "# Ok::<(), InvalidInput>(())\n",
                "```\n",
            )]
        )+
        #[derive(Debug, Clone, PartialEq)]
        pub struct $loss {
            $($required: f64,)?
            $($field: $ty,)*
        }

        impl $loss {
            /// The config that builds this objective.
            pub fn config(&self) -> $config {
                $config {
                    $($required: self.$required,)?
                    $($field: self.$field,)*
                }
            }
        }

        #[doc = concat!("Configuration of [`", stringify!($loss), "`].")]
        #[doc = ""]
        #[doc = "In a file, a missing key takes its default and an unknown key is an error."]
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[non_exhaustive]
        pub struct $config {
            $(
                #[doc = $required_doc]
                #[doc = "\n\nIt has no default."]
                pub $required: f64,
            )?
            $(
                $(#[$field_meta])*
                #[doc = concat!("\n\nDefault: `", stringify!($default), "`.")]
                pub $field: $ty,
            )*
        }

        impl burn::config::Config for $config {}

        $crate::declare::objective!(@new $config ($($required)?) ($($field = $default,)*));

        impl $config {
            $(
                #[doc = $required_doc]
                pub fn $with_required(mut self, $required: f64) -> Self {
                    self.$required = $required;
                    self
                }
            )?

            $(
                $(#[$field_meta])*
                pub fn $with(mut self, $field: $ty) -> Self {
                    self.$field = $field;
                    self
                }
            )*

            /// Builds the objective.
            ///
            /// # Errors
            ///
            /// A value is outside its range; the error names it.
            pub fn try_init(&self) -> Result<$loss, $crate::error::InvalidHyperparameter> {
                $(
                    $crate::hyperparameter::given(stringify!($required), self.$required)?;
                    $crate::hyperparameter::$required_range(stringify!($required), self.$required)?;
                )?
                $($($crate::hyperparameter::$range(stringify!($field), self.$field)?;)?)*
                Ok(self.unchecked())
            }

            fn unchecked(&self) -> $loss {
                $loss {
                    $($required: self.$required,)?
                    $($field: self.$field,)*
                }
            }

            /// Needs of the objective, for each type of batch that it takes. The first one has the
            /// fewest columns.
            pub fn takes(&self) -> Vec<$crate::needs::Needs> {
                let objective = self.unchecked();
                let takes = vec![$(<$loss as $crate::objective::Objective<$taken>>::needs(&objective)),+];
                $(let takes = takes.into_iter().filter(|needs| objective.$only(needs)).collect();)?
                takes
            }

            /// Builds the objective over `B`; `None` if it does not take such a batch.
            pub(crate) fn over<B: $crate::batch::Batch + 'static>(
                &self,
            ) -> Result<
                Option<std::sync::Arc<dyn $crate::objective::Objective<B>>>,
                $crate::error::InvalidHyperparameter,
            > {
                let objective = std::sync::Arc::new(self.try_init()?);
                $(if !objective.$only(&B::needs()) {
                    return Ok(None);
                })?
                let over = None;
                $(let over = over.or_else(|| {
                    $crate::declare::over::<$taken, B>(std::sync::Arc::clone(&objective) as _)
                });)+
                Ok(over)
            }

            #[doc = concat!("Builds the objective; see [`try_init`](", stringify!($config), "::try_init)")]
            /// for values that come from outside the program.
            ///
            /// # Panics
            ///
            /// Panics if a value is outside its range.
            pub fn init(&self) -> $loss {
                self.try_init().unwrap_or_else(|error| panic!("{error}"))
            }
        }
    };

    (@new $config:ident () ($($field:ident = $default:expr,)*)) => {
        impl Default for $config {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }

        impl $config {
            /// Config with the defaults of all fields.
            pub fn new() -> Self {
                Self::default()
            }
        }
    };

    (@new $config:ident ($required:ident) ($($field:ident = $default:expr,)*)) => {
        /// For files: what has no default is NaN, which `try_init` refuses.
        impl Default for $config {
            fn default() -> Self {
                Self::new(f64::NAN)
            }
        }

        impl $config {
            #[doc = concat!("Config with the defaults, and `", stringify!($required), "`.")]
            pub fn new($required: f64) -> Self {
                Self { $required, $($field: $default,)* }
            }
        }
    };
}
pub(crate) use objective;

/// Implements an objective over batches, and over each of them with the tokens of its step, by its
/// method `output(&batch, tokens_per_example)`: `over_step!(Loss, normalization: Batch, …)`.
///
/// Without the tokens of the step, a mean over tokens is one of the whole batch; the field
/// `normalization` says whether it is one.
macro_rules! over_step {
    ($loss:ident, $normalization:ident: $($batch:ty),+) => {
        $(
            impl $crate::objective::Objective<$batch> for $loss {
                fn forward(
                    &self,
                    batch: $batch,
                ) -> $crate::objective::LossOutput<<$batch as $crate::batch::Batch>::Rewards> {
                    self.output(&batch, None)
                }

                fn whole_batch(&self) -> bool {
                    self.$normalization.whole_batch()
                }
            }

            impl $crate::objective::Objective<$crate::batch::WithStepTokens<$batch>> for $loss {
                fn forward(
                    &self,
                    batch: $crate::batch::WithStepTokens<$batch>,
                ) -> $crate::objective::LossOutput<<$batch as $crate::batch::Batch>::Rewards> {
                    self.output(batch.batch(), Some(batch.tokens_per_example()))
                }
            }
        )+
    };
}
pub(crate) use over_step;
