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
//! `loss` names the objective in snake case, and the other keys are the fields of its config. A
//! missing key takes its default, so a file of an older version loads; an unknown key, an unknown
//! objective and a missing `loss` are errors of the parser that name the key, and a value outside
//! its range is an error of `try_init` that carries name, value and range. All enums implement
//! [`burn::config::Config`], so `load` and `save` work with JSON files.
//!
//! Mixtures and the SFT term nest:
//!
//! ```json
//! {"loss": "with_sft", "weight": 1.0, "objective": {"loss": "mixture", "parts": [
//!     {"weight": 0.8, "objective": {"loss": "dpo"}},
//!     {"weight": 0.2, "objective": {"loss": "bco"}}]}}
//! ```
//!
//! What is done to token log-probabilities before they are summed is a [`TokenModifierConfig`], and
//! TR-DPO's moving reference a [`ReferenceSchedule`](crate::reference::ReferenceSchedule):
//!
//! ```json
//! {"modifier": "length_desensitized", "alpha": 0.5}
//! ```
//!
//! Objectives that need a column have an enum of their own ([`ScoredPairObjectiveConfig`],
//! [`TiedPairObjectiveConfig`]), or, where there is one alone, their config is the file:
//! [`BetaDpoLossConfig`](crate::loss::BetaDpoLossConfig),
//! [`TdpoLossConfig`](crate::loss::TdpoLossConfig).

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::batch::{Pair, PolicyPair, Ranked, ReferencedPair, WithScores, WithTies};
use crate::error::{InvalidHyperparameter, InvalidInput};
use crate::hyperparameter::{finite, fraction};
use crate::log_probs::{RelativeLogProbs, SequenceLogProbs, TokenLogProbs};
use crate::loss::{
    AlphaPoLossConfig, AotLossConfig, ApoDownLossConfig, ApoZeroLoss, ApoZeroLossConfig,
    AsftLossConfig, BcoLoss, BcoLossConfig, CalDpoLossConfig, ChipoLossConfig, CpoLossConfig,
    DavidsonLossConfig, DiscopopLossConfig, DpoLossConfig, DpoShiftLossConfig, DpopLossConfig,
    ExoListLossConfig, ExoPairLossConfig, GpoLossConfig, HdpoLossConfig, HingeLossConfig,
    InfoNcaLossConfig, IpoLossConfig, KtoLoss, KtoLossConfig, LipoLossConfig, NcaListLossConfig,
    NcaLossConfig, NpoLoss, NpoLossConfig, OrpoLossConfig, PlackettLuceLossConfig, ProLossConfig,
    RaoKupperLossConfig, RdpoLossConfig, RebelLossConfig, RpoLossConfig, RrhfLossConfig,
    SimnpoLoss, SimnpoLossConfig, SimperLossConfig, SimpoLossConfig, SlicHfLossConfig,
    SppoLossConfig,
};
use crate::modifier::{Mixture, SftTerm};
use crate::objective::{LossOutput, Objective};
use crate::part::NllNormalization;

type Boxed<B> = Box<dyn Objective<B> + Send + Sync>;

/// An enum of configs, tagged by `loss`.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident { $($variant:ident($config:ty),)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "loss", rename_all = "snake_case")]
        pub enum $name {
            $(
                #[doc = concat!("[`", stringify!($config), "`].")]
                $variant($config),
            )*
        }

        impl burn::config::Config for $name {}
    };
}

choice! {
    /// An objective over pairs.
    PairObjectiveConfig {
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
        Simpo(SimpoLossConfig),
        Cpo(CpoLossConfig),
        AlphaPo(AlphaPoLossConfig),
        Orpo(OrpoLossConfig),
        SlicHf(SlicHfLossConfig),
        Simper(SimperLossConfig),
        Asft(AsftLossConfig),
        Mixture(MixtureConfig),
        WithSft(WithSftConfig),
    }
}

/// A weighted sum of objectives: a [`Mixture`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureConfig {
    /// One at least.
    pub parts: Vec<MixturePartConfig>,
}

/// One term of a mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixturePartConfig {
    /// ≥ 0.
    pub weight: f64,
    /// What it weighs.
    pub objective: PairObjectiveConfig,
}

/// An objective plus the chosen completion's NLL: an [`SftTerm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithSftConfig {
    /// What the term is added to.
    pub objective: Box<PairObjectiveConfig>,
    /// α ≥ 0.
    pub weight: f64,
    /// The mean that the NLL takes.
    #[serde(default)]
    pub normalization: NllNormalization,
}

/// An objective over pairs, by what it takes.
pub enum PairObjective {
    /// Against a reference.
    Referenced(Boxed<ReferencedPair>),
    /// The policy alone.
    ReferenceFree(Boxed<PolicyPair>),
}

impl PairObjectiveConfig {
    /// Builds the objective.
    ///
    /// A mixture needs a reference as soon as one part does.
    ///
    /// # Errors
    ///
    /// A value is outside its range, or a mixture has no parts.
    pub fn try_init(&self) -> Result<PairObjective, InvalidHyperparameter> {
        use PairObjective::{ReferenceFree, Referenced};
        Ok(match self {
            Self::Dpo(config) => Referenced(Box::new(config.try_init()?)),
            Self::Ipo(config) => Referenced(Box::new(config.try_init()?)),
            Self::Hinge(config) => Referenced(Box::new(config.try_init()?)),
            Self::Gpo(config) => Referenced(Box::new(config.try_init()?)),
            Self::Discopop(config) => Referenced(Box::new(config.try_init()?)),
            Self::ExoPair(config) => Referenced(Box::new(config.try_init()?)),
            Self::Nca(config) => Referenced(Box::new(config.try_init()?)),
            Self::Bco(config) => Referenced(Box::new(config.try_init()?)),
            Self::Sppo(config) => Referenced(Box::new(config.try_init()?)),
            Self::ApoZero(config) => Referenced(Box::new(config.try_init()?)),
            Self::ApoDown(config) => Referenced(Box::new(config.try_init()?)),
            Self::Dpop(config) => Referenced(Box::new(config.try_init()?)),
            Self::Rdpo(config) => Referenced(Box::new(config.try_init()?)),
            Self::CalDpo(config) => Referenced(Box::new(config.try_init()?)),
            Self::Aot(config) => Referenced(Box::new(config.try_init()?)),
            Self::DpoShift(config) => Referenced(Box::new(config.try_init()?)),
            Self::Hdpo(config) => Referenced(Box::new(config.try_init()?)),
            Self::Chipo(config) => Referenced(Box::new(config.try_init()?)),
            Self::Simpo(config) => ReferenceFree(Box::new(config.try_init()?)),
            Self::Cpo(config) => ReferenceFree(Box::new(config.try_init()?)),
            Self::AlphaPo(config) => ReferenceFree(Box::new(config.try_init()?)),
            Self::Orpo(config) => ReferenceFree(Box::new(config.try_init()?)),
            Self::SlicHf(config) => ReferenceFree(Box::new(config.try_init()?)),
            Self::Simper(config) => ReferenceFree(Box::new(config.try_init()?)),
            Self::Asft(config) => ReferenceFree(Box::new(config.try_init()?)),
            Self::Mixture(mixture) => mixture.try_init()?,
            Self::WithSft(sft) => match sft.objective.try_init()? {
                Referenced(objective) => Referenced(Box::new(sft.term(objective)?)),
                ReferenceFree(objective) => ReferenceFree(Box::new(sft.term(objective)?)),
            },
        })
    }
}

impl WithSftConfig {
    fn term<O>(&self, objective: O) -> Result<SftTerm<O>, InvalidHyperparameter> {
        Ok(SftTerm::try_new(objective, self.weight)?.with_normalization(self.normalization))
    }
}

impl MixtureConfig {
    fn try_init(&self) -> Result<PairObjective, InvalidHyperparameter> {
        let mut parts = Vec::new();
        for part in &self.parts {
            parts.push((part.weight, part.objective.try_init()?));
        }
        let free = |objective: &PairObjective| matches!(objective, PairObjective::ReferenceFree(_));
        if parts.iter().all(|(_, objective)| free(objective)) {
            let policy = parts
                .into_iter()
                .filter_map(|(weight, objective)| match objective {
                    PairObjective::ReferenceFree(objective) => Some((weight, objective)),
                    PairObjective::Referenced(_) => None,
                });
            return Ok(PairObjective::ReferenceFree(Box::new(mix(policy)?)));
        }
        let referenced = parts
            .into_iter()
            .map(|(weight, objective)| match objective {
                PairObjective::Referenced(objective) => (weight, objective),
                PairObjective::ReferenceFree(objective) => (
                    weight,
                    Box::new(PolicyOf(objective)) as Boxed<ReferencedPair>,
                ),
            });
        Ok(PairObjective::Referenced(Box::new(mix(referenced)?)))
    }
}

fn mix<B: crate::batch::Batch + Clone + 'static>(
    mut parts: impl Iterator<Item = (f64, Boxed<B>)>,
) -> Result<Mixture<B>, InvalidHyperparameter> {
    let Some((weight, first)) = parts.next() else {
        return Err(InvalidHyperparameter::new(
            "parts",
            0.0,
            "one part at least",
        ));
    };
    parts.try_fold(
        Mixture::try_new(weight, first)?,
        |mixture, (weight, objective)| mixture.try_and(weight, objective),
    )
}

/// A reference-free objective beside others that need the reference.
struct PolicyOf(Boxed<PolicyPair>);

impl Objective<ReferencedPair> for PolicyOf {
    fn forward(&self, batch: ReferencedPair) -> LossOutput<Pair<Tensor<1>>> {
        self.0.forward(batch.policy())
    }
}

choice! {
    /// An objective over pairs with scores.
    ScoredPairObjectiveConfig {
        Rpo(RpoLossConfig),
        Rebel(RebelLossConfig),
    }
}

impl ScoredPairObjectiveConfig {
    /// Builds the objective.
    ///
    /// # Errors
    ///
    /// A value is outside its range.
    pub fn try_init(&self) -> Result<Boxed<WithScores<ReferencedPair>>, InvalidHyperparameter> {
        Ok(match self {
            Self::Rpo(config) => Box::new(config.try_init()?),
            Self::Rebel(config) => Box::new(config.try_init()?),
        })
    }
}

choice! {
    /// An objective over pairs that may be ties.
    TiedPairObjectiveConfig {
        RaoKupper(RaoKupperLossConfig),
        Davidson(DavidsonLossConfig),
    }
}

impl TiedPairObjectiveConfig {
    /// Builds the objective.
    ///
    /// # Errors
    ///
    /// A value is outside its range.
    pub fn try_init(&self) -> Result<Boxed<WithTies<ReferencedPair>>, InvalidHyperparameter> {
        Ok(match self {
            Self::RaoKupper(config) => Box::new(config.try_init()?),
            Self::Davidson(config) => Box::new(config.try_init()?),
        })
    }
}

choice! {
    /// An objective over single completions: labelled ones, or ones to unlearn.
    UnpairedObjectiveConfig {
        Kto(KtoLossConfig),
        Bco(BcoLossConfig),
        ApoZero(ApoZeroLossConfig),
        Npo(NpoLossConfig),
        Simnpo(SimnpoLossConfig),
    }
}

/// An objective over single completions. Each takes another batch, so each is itself.
#[derive(Debug, Clone, PartialEq)]
pub enum UnpairedObjective {
    /// Labels and z₀.
    Kto(KtoLoss),
    /// Labels and δ.
    Bco(BcoLoss),
    /// Labels.
    ApoZero(ApoZeroLoss),
    /// Completions to unlearn, against a reference.
    Npo(NpoLoss),
    /// Completions to unlearn.
    Simnpo(SimnpoLoss),
}

impl UnpairedObjectiveConfig {
    /// Builds the objective.
    ///
    /// # Errors
    ///
    /// A value is outside its range.
    pub fn try_init(&self) -> Result<UnpairedObjective, InvalidHyperparameter> {
        Ok(match self {
            Self::Kto(config) => UnpairedObjective::Kto(config.try_init()?),
            Self::Bco(config) => UnpairedObjective::Bco(config.try_init()?),
            Self::ApoZero(config) => UnpairedObjective::ApoZero(config.try_init()?),
            Self::Npo(config) => UnpairedObjective::Npo(config.try_init()?),
            Self::Simnpo(config) => UnpairedObjective::Simnpo(config.try_init()?),
        })
    }
}

choice! {
    /// An objective over ranked lists.
    RankedObjectiveConfig {
        PlackettLuce(PlackettLuceLossConfig),
        Lipo(LipoLossConfig),
        InfoNca(InfoNcaLossConfig),
        NcaList(NcaListLossConfig),
        ExoList(ExoListLossConfig),
        Rrhf(RrhfLossConfig),
        Pro(ProLossConfig),
    }
}

/// An objective over ranked lists, by what it takes.
pub enum RankedObjective {
    /// Against a reference.
    Referenced(Boxed<Ranked<RelativeLogProbs<2>>>),
    /// The policy alone.
    ReferenceFree(Boxed<Ranked<SequenceLogProbs<2>>>),
}

impl RankedObjectiveConfig {
    /// Builds the objective.
    ///
    /// # Errors
    ///
    /// A value is outside its range.
    pub fn try_init(&self) -> Result<RankedObjective, InvalidHyperparameter> {
        use RankedObjective::{ReferenceFree, Referenced};
        Ok(match self {
            Self::PlackettLuce(config) => Referenced(Box::new(config.try_init()?)),
            Self::Lipo(config) => Referenced(Box::new(config.try_init()?)),
            Self::InfoNca(config) => Referenced(Box::new(config.try_init()?)),
            Self::NcaList(config) => Referenced(Box::new(config.try_init()?)),
            Self::ExoList(config) => Referenced(Box::new(config.try_init()?)),
            Self::Rrhf(config) => ReferenceFree(Box::new(config.try_init()?)),
            Self::Pro(config) => ReferenceFree(Box::new(config.try_init()?)),
        })
    }
}

/// Something done to the token log-probabilities of pairs before they are summed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "modifier", rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenModifierConfig {
    /// LD-DPO: [`Pair::length_desensitized`] of policy and reference.
    LengthDesensitized {
        /// α ∈ \[0, 1\].
        alpha: f64,
    },
    /// [`Pair::clamped_relative_to`].
    TokenClamp {
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
            Self::TokenClamp { low, high } => {
                finite("low", low)?;
                finite("high", high)?;
                if low > high {
                    return Err(InvalidHyperparameter::new("high", high, "≥ `low`"));
                }
            }
        }
        Ok(TokenModifier(self))
    }
}

impl TokenModifier {
    /// The pairs that an objective takes.
    ///
    /// # Errors
    ///
    /// `reference` has another shape than `policy`.
    ///
    /// # Panics
    ///
    /// Never: the values were checked.
    pub fn apply(
        &self,
        policy: &Pair<TokenLogProbs>,
        reference: &Pair<TokenLogProbs>,
    ) -> Result<ReferencedPair, InvalidInput> {
        match self.0 {
            TokenModifierConfig::LengthDesensitized { alpha } => {
                let sums = |y: &Pair<TokenLogProbs>| y.length_desensitized(alpha).expect("checked");
                sums(policy).relative_to(sums(reference))
            }
            TokenModifierConfig::TokenClamp { low, high } => {
                policy.clamped_relative_to(reference, low, high)
            }
        }
    }
}
