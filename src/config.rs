//! Objectives chosen by a file: one tagged enum per kind of batch.
//!
//! ```
//! use burn_preference::config::{PairObjective, PairObjectiveConfig};
//! # // serde_json is a dependency of the tests alone; any format of serde will do.
//! let json = r#"{"loss": "dpo", "beta": 0.2, "label_noise": {"conservative": 0.1}}"#;
//! let config: PairObjectiveConfig = serde_json::from_str(json)?;
//! match config.try_init()? {
//!     PairObjective::Referenced(_objective) => {} // takes `ReferencedPair`
//!     PairObjective::ReferenceFree(_objective) => {} // takes `PolicyPair`
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `loss` names the objective ([all names](crate::loss#all-objectives)), and the other keys are the
//! fields of its config.
//!
//! - A missing key takes its default, so a file of an older version loads.
//! - An unknown key, an unknown objective and a missing `loss` are errors of the parser that name
//!   the key.
//! - A value outside its range is an error of `try_init` that carries name, value and range.
//!
//! All enums implement Burn's
//! [`Config`](https://docs.rs/burn/0.22.1/burn/config/trait.Config.html), so `load` and `save` work
//! with JSON files. Which enum to take depends on the batch:
//!
//! | batch | enum |
//! |---|---|
//! | pairs | [`PairObjectiveConfig`] |
//! | pairs with scores | [`ScoredPairObjectiveConfig`] |
//! | pairs that may be ties | [`TiedPairObjectiveConfig`] |
//! | labelled completions, completions to unlearn | [`UnpairedObjectiveConfig`] |
//! | completions with a scalar score | [`ScoredObjectiveConfig`] |
//! | lists | [`RankedObjectiveConfig`] |
//! | rewards of a reward model | [`RewardObjectiveConfig`] |
//! | pairs with another column | the config itself: [`BetaDpoLossConfig`], [`TdpoLossConfig`], [`TpoLossConfig`] |
//!
//! Mixtures and the SFT term nest:
//!
//! ```json
//! {"loss": "with_sft", "weight": 1.0, "objective": {"loss": "mixture", "parts": [
//!     {"weight": 0.8, "objective": {"loss": "dpo"}},
//!     {"weight": 0.2, "objective": {"loss": "bco"}}]}}
//! ```
//!
//! What a [`PairObjectiveConfig`] builds takes plain pairs. BCO then has δ = 0, and an SFT term with a mean over tokens
//! takes the tokens of the batch at hand. For a moving δ ([`WithShift`](crate::batch::WithShift)) or
//! the tokens of a whole step ([`WithNll::over_step`](crate::batch::WithNll::over_step)) build the
//! objective in code.
//!
//! Two more things come from a file: what is done to token log-probabilities before they are summed
//! ([`TokenModifierConfig`]), and TR-DPO's moving reference
//! ([`ReferenceSchedule`](crate::reference::ReferenceSchedule)).
//!
//! ```json
//! {"modifier": "length_desensitized", "alpha": 0.5}
//! {"modifier": "clamped", "low": -1.5, "high": 1.5}
//! ```

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::batch::{Batch, Pair, PolicyPair, Ranked, ReferencedPair, WithScores, WithTies};
use crate::error::InvalidHyperparameter;
use crate::hyperparameter::{bounds, fraction};
use crate::log_probs::{RelativeLogProbs, RelativeTokenLogProbs, SequenceLogProbs};
#[allow(
    clippy::wildcard_imports,
    reason = "the list below names each objective, once"
)]
use crate::loss::*;
use crate::modifier::{Mixture, PolicySide, SftTerm};
use crate::objective::{LossOutput, Objective};
use crate::part::NllNormalization;

/// An objective and the config that built it. Clones share it, and it prints as its config, so
/// that it may be a `#[module(skip)]` field of a model.
pub struct Configured<B: Batch, C> {
    objective: Arc<dyn Objective<B>>,
    config: C,
}

impl<B: Batch, C> Configured<B, C> {
    fn new(objective: impl Objective<B> + 'static, config: C) -> Self {
        let objective = Arc::new(objective);
        Self { objective, config }
    }

    /// The config that built it.
    pub fn config(&self) -> &C {
        &self.config
    }
}

impl<B: Batch, C: Clone> Clone for Configured<B, C> {
    fn clone(&self) -> Self {
        Self {
            objective: Arc::clone(&self.objective),
            config: self.config.clone(),
        }
    }
}

impl<B: Batch, C: fmt::Debug> fmt::Debug for Configured<B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

impl<B: Batch, C: fmt::Debug + Send + Sync> Objective<B> for Configured<B, C> {
    fn forward(&self, batch: B) -> LossOutput<B::Rewards> {
        self.objective.forward(batch)
    }
}

/// Every objective that a file can name, once: an enum of configs for each kind of batch, tagged by
/// `loss`, and what it builds.
///
/// | after the arrow | builds |
/// |---|---|
/// | `sides Built` | an enum by what the objective takes: `Side(Batch) by constructor` |
/// | `one Batch` | a [`Configured`] of that batch |
/// | `each Built` | an enum of the objectives themselves, each with a batch of its own |
macro_rules! objectives {
    () => {};
    (
        $(#[$meta:meta])* $name:ident => sides $built:ident {
            $(
                $(#[$side_meta:meta])* $side:ident($batch:ty) by $make:ident {
                    $($variant:ident($config:ty),)*
                }
            )*
            $(+ nested { $($nested:ident($nested_config:ty),)* })?
        }
        $($rest:tt)*
    ) => {
        objectives! {
            @enum $(#[$meta])* $name => $built {
                $($($variant($config) => $built::$make,)*)*
                $($($nested($nested_config) => |built, _| built,)*)?
            }
        }

        #[doc = concat!("What a [`", stringify!($name), "`] builds: a variant for each kind of batch.")]
        #[derive(Debug, Clone)]
        pub enum $built {
            $(
                $(#[$side_meta])*
                $side(Configured<$batch, $name>),
            )*
        }

        impl $built {
            $(
                fn $make(objective: impl Objective<$batch> + 'static, config: $name) -> Self {
                    Self::$side(Configured::new(objective, config))
                }
            )*

            /// The config that built it.
            pub fn config(&self) -> &$name {
                match self {
                    $(Self::$side(built) => built.config(),)*
                }
            }
        }

        objectives! { $($rest)* }
    };
    (
        $(#[$meta:meta])* $name:ident => one $batch:ty {
            $($variant:ident($config:ty),)*
        }
        $($rest:tt)*
    ) => {
        objectives! {
            @enum $(#[$meta])* $name => Configured<$batch, $name> {
                $($variant($config) => Configured::new,)*
            }
        }

        objectives! { $($rest)* }
    };
    (
        $(#[$meta:meta])* $name:ident => each $built:ident {
            $($(#[$variant_meta:meta])* $variant:ident($config:ty) builds $loss:ty,)*
        }
        $($rest:tt)*
    ) => {
        objectives! {
            @enum $(#[$meta])* $name => $built {
                $($variant($config) => |loss, _| $built::$variant(loss),)*
            }
        }

        #[doc = concat!("What a [`", stringify!($name), "`] builds: the objective itself, since each takes another batch.")]
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub enum $built {
            $(
                $(#[$variant_meta])*
                $variant($loss),
            )*
        }

        objectives! { $($rest)* }
    };
    (
        @enum $(#[$meta:meta])* $name:ident => $built:ty {
            $($variant:ident($config:ty) => $make:expr,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "loss", rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum $name {
            $(
                #[doc = concat!("[`", stringify!($config), "`].")]
                $variant($config),
            )*
        }

        impl burn::config::Config for $name {}

        impl $name {
            /// Builds the objective.
            ///
            /// # Errors
            ///
            /// A value is outside its range, or a mixture has no parts.
            pub fn try_init(&self) -> Result<$built, InvalidHyperparameter> {
                Ok(match self {
                    $(Self::$variant(config) => $make(config.try_init()?, self.clone()),)*
                })
            }
        }
    };
}

objectives! {
    /// An objective over pairs. A mixture needs a reference as soon as one part does.
    PairObjectiveConfig => sides PairObjective {
        /// Against a reference.
        Referenced(ReferencedPair) by referenced {
            Dpo(DpoLossConfig),
            Ipo(IpoLossConfig),
            Hinge(HingeLossConfig),
            Gpo(GpoLossConfig),
            Discopop(DiscopopLossConfig),
            ExoPair(ExoPairLossConfig),
            Nca(NcaLossConfig),
            Bco(BcoLossConfig),
            Sppo(SppoLossConfig),
            ApoZero(ApoZeroLossConfig),
            ApoDown(ApoDownLossConfig),
            Dpop(DpopLossConfig),
            Rdpo(RdpoLossConfig),
            CalDpo(CalDpoLossConfig),
            Aot(AotLossConfig),
            DpoShift(DpoShiftLossConfig),
            Hdpo(HdpoLossConfig),
            Chipo(ChipoLossConfig),
        }
        /// The policy alone.
        ReferenceFree(PolicyPair) by reference_free {
            Simpo(SimpoLossConfig),
            Cpo(CpoLossConfig),
            AlphaPo(AlphaPoLossConfig),
            Orpo(OrpoLossConfig),
            SlicHf(SlicHfLossConfig),
            Simper(SimperLossConfig),
            Asft(AsftLossConfig),
        }
        + nested {
            Mixture(MixtureConfig),
            WithSft(WithSftConfig),
        }
    }

    /// An objective over pairs with scores.
    ScoredPairObjectiveConfig => one WithScores<ReferencedPair> {
        Rpo(RpoLossConfig),
        Rebel(RebelLossConfig),
    }

    /// An objective over pairs that may be ties.
    TiedPairObjectiveConfig => one WithTies<ReferencedPair> {
        RaoKupper(RaoKupperLossConfig),
        Davidson(DavidsonLossConfig),
    }

    /// An objective over single completions: labelled ones, or ones to unlearn.
    UnpairedObjectiveConfig => each UnpairedObjective {
        /// Labels and z₀.
        Kto(KtoLossConfig) builds KtoLoss,
        /// Labels and δ.
        Bco(BcoLossConfig) builds BcoLoss,
        /// Labels.
        ApoZero(ApoZeroLossConfig) builds ApoZeroLoss,
        /// Completions to unlearn, against a reference.
        Npo(NpoLossConfig) builds NpoLoss,
        /// Completions to unlearn.
        Simnpo(SimnpoLossConfig) builds SimnpoLoss,
    }

    /// An objective over completions with a scalar score each.
    ScoredObjectiveConfig => each ScoredObjective {
        /// Rewards and V.
        Dro(DroLossConfig) builds DroLoss,
        /// Rewards and V*.
        AstarPo(AstarPoLossConfig) builds AstarPoLoss,
        /// Quantiles.
        Qrpo(QrpoLossConfig) builds QrpoLoss,
    }

    /// An objective of a reward model.
    RewardObjectiveConfig => each RewardObjective {
        /// Pairs of rewards.
        BradleyTerry(BradleyTerryLossConfig) builds BradleyTerryLoss,
        /// Pairs of rewards that may be ties.
        BradleyTerryTies(BradleyTerryTiesLossConfig) builds BradleyTerryTiesLoss,
        /// Ranked lists of rewards.
        RewardRanking(RewardRankingLossConfig) builds RewardRankingLoss,
    }

    /// An objective over ranked lists.
    RankedObjectiveConfig => sides RankedObjective {
        /// Against a reference.
        Referenced(Ranked<RelativeLogProbs<2>>) by referenced {
            PlackettLuce(PlackettLuceLossConfig),
            Sdpo(SdpoLossConfig),
            Lipo(LipoLossConfig),
            InfoNca(InfoNcaLossConfig),
            NcaList(NcaListLossConfig),
            ExoList(ExoListLossConfig),
        }
        /// The policy alone.
        ReferenceFree(Ranked<SequenceLogProbs<2>>) by reference_free {
            Rrhf(RrhfLossConfig),
            Pro(ProLossConfig),
        }
    }
}

/// A weighted sum of objectives: a [`Mixture`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MixtureConfig {
    /// One at least.
    pub parts: Vec<MixturePartConfig>,
}

impl MixtureConfig {
    /// Of these parts.
    pub fn new(parts: Vec<MixturePartConfig>) -> Self {
        Self { parts }
    }
}

/// One term of a mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MixturePartConfig {
    /// ≥ 0.
    pub weight: f64,
    /// What it weighs.
    pub objective: PairObjectiveConfig,
}

impl MixturePartConfig {
    /// `weight`·`objective`.
    pub fn new(weight: f64, objective: PairObjectiveConfig) -> Self {
        Self { weight, objective }
    }
}

/// An objective plus the chosen completion's NLL: an [`SftTerm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct WithSftConfig {
    /// What the term is added to.
    pub objective: Box<PairObjectiveConfig>,
    /// α ≥ 0.
    pub weight: f64,
    /// The mean that the NLL takes.
    #[serde(default)]
    pub normalization: NllNormalization,
}

impl WithSftConfig {
    /// `objective` + `weight`·NLL, per sequence.
    pub fn new(objective: PairObjectiveConfig, weight: f64) -> Self {
        Self {
            objective: Box::new(objective),
            weight,
            normalization: NllNormalization::default(),
        }
    }

    /// The mean that the NLL takes.
    pub fn with_normalization(mut self, normalization: NllNormalization) -> Self {
        self.normalization = normalization;
        self
    }
}

impl WithSftConfig {
    fn try_init(&self) -> Result<PairObjective, InvalidHyperparameter> {
        let config = PairObjectiveConfig::WithSft(self.clone());
        Ok(match self.objective.try_init()? {
            PairObjective::Referenced(objective) => {
                PairObjective::referenced(self.term(objective)?, config)
            }
            PairObjective::ReferenceFree(objective) => {
                PairObjective::reference_free(self.term(objective)?, config)
            }
        })
    }

    fn term<O>(&self, objective: O) -> Result<SftTerm<O>, InvalidHyperparameter> {
        Ok(SftTerm::new(objective, self.weight)?.with_normalization(self.normalization))
    }
}

impl MixtureConfig {
    fn try_init(&self) -> Result<PairObjective, InvalidHyperparameter> {
        let mut parts = Vec::new();
        for part in &self.parts {
            parts.push((part.weight, part.objective.try_init()?));
        }
        let config = PairObjectiveConfig::Mixture(self.clone());
        let mut free = Vec::new();
        for (weight, part) in &parts {
            if let PairObjective::ReferenceFree(objective) = part {
                free.push((*weight, objective.clone()));
            }
        }
        if free.len() == parts.len() {
            return Ok(PairObjective::reference_free(mix(free)?, config));
        }
        let referenced = parts.into_iter().map(|(weight, part)| {
            let objective: Arc<dyn Objective<ReferencedPair>> = match part {
                PairObjective::Referenced(objective) => Arc::new(objective),
                PairObjective::ReferenceFree(objective) => Arc::new(PolicySide(objective)),
            };
            (weight, objective)
        });
        Ok(PairObjective::referenced(mix(referenced)?, config))
    }
}

fn mix<B: Batch, O: Objective<B> + 'static>(
    parts: impl IntoIterator<Item = (f64, O)>,
) -> Result<Mixture<B>, InvalidHyperparameter> {
    let mut parts = parts.into_iter();
    let Some((weight, first)) = parts.next() else {
        let allowed = "one part at least";
        return Err(InvalidHyperparameter::new("parts", 0.0, allowed));
    };
    let first = Mixture::new(weight, first)?;
    parts.try_fold(first, |mixture, (weight, objective)| {
        mixture.and(weight, objective)
    })
}

/// Something done to the token log-probabilities of pairs before they are summed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "modifier", rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum TokenModifierConfig {
    /// LD-DPO: [`Pair::length_desensitized`].
    LengthDesensitized {
        /// α ∈ \[0, 1\].
        alpha: f64,
    },
    /// [`Pair::clamped`].
    Clamped {
        /// The lowest log-ratio of a token, nats.
        low: f64,
        /// The highest; at least `low`.
        high: f64,
    },
}

impl burn::config::Config for TokenModifierConfig {}

/// A checked [`TokenModifierConfig`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenModifier(TokenModifierConfig);

impl TokenModifierConfig {
    /// Checks the values.
    ///
    /// # Errors
    ///
    /// A value is outside its range.
    pub fn try_init(self) -> Result<TokenModifier, InvalidHyperparameter> {
        match self {
            Self::LengthDesensitized { alpha } => fraction("alpha", alpha)?,
            Self::Clamped { low, high } => bounds(low, high)?,
        }
        Ok(TokenModifier(self))
    }
}

impl TokenModifier {
    /// The tokens as the modifier leaves them, of policy and reference.
    #[allow(clippy::missing_panics_doc, reason = "the values were checked")]
    pub fn apply(&self, tokens: Pair<RelativeTokenLogProbs>) -> Pair<RelativeTokenLogProbs> {
        let modified = match self.0 {
            TokenModifierConfig::LengthDesensitized { alpha } => tokens.length_desensitized(alpha),
            TokenModifierConfig::Clamped { low, high } => tokens.clamped(low, high),
        };
        modified.expect("checked")
    }
}
