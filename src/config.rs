//! Objectives chosen by a file: one type that reads each of them, and builds it over your batch.
//!
//! ```
//! use burn_preference::ReferencedPair;
//! use burn_preference::config::{Configured, ObjectiveConfig};
//! # // serde_json is a dependency of the tests alone; any format of serde will do.
//! let json = r#"{"loss": "dpo", "beta": 0.2, "label_noise": {"conservative": 0.1}}"#;
//! let config: ObjectiveConfig = serde_json::from_str(json)?;
//! let objective: Configured<ReferencedPair> = config.build()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `loss` names the objective ([all names](crate::loss#all-objectives)), and the other keys are the
//! fields of its config.
//!
//! - A missing key takes its default, so a file of an older version loads.
//! - An unknown key, an unknown objective and a missing `loss` are errors of the parser that name
//!   the key.
//! - A value outside its range is an error of [`build`](ObjectiveConfig::build) that carries name,
//!   value and range.
//! - An objective that does not take your batch is an error of `build` that says what it takes.
//!
//! [`ObjectiveConfig`] implements Burn's
//! [`Config`](https://docs.rs/burn/0.22.1/burn/config/trait.Config.html), so `load` and `save` work
//! with JSON files.
//!
//! # A program that takes any objective
//!
//! It asks for the [`Needs`] before it reads data or makes a reference:
//!
//! ```
//! use burn_preference::config::ObjectiveConfig;
//! use burn_preference::needs::Examples;
//!
//! let config: ObjectiveConfig = serde_json::from_str(r#"{"loss": "bco"}"#)?;
//! let takes = config.takes();
//! // "pairs, reference", "pairs, reference, δ", "unpaired completions, reference, δ"
//! assert!(takes.iter().all(|needs| needs.has_reference()));
//! assert!(takes.iter().any(|needs| needs.examples == Examples::Unpaired));
//! # Ok::<(), serde_json::Error>(())
//! ```
//!
//! # Objectives made of objectives
//!
//! Mixtures and the SFT term nest. They take plain pairs, against a reference as soon as one part
//! needs it:
//!
//! ```json
//! {"loss": "with_sft", "weight": 1.0, "objective": {"loss": "mixture", "parts": [
//!     {"weight": 0.8, "objective": {"loss": "dpo"}},
//!     {"weight": 0.2, "objective": {"loss": "bco"}}]}}
//! ```
//!
//! An SFT term takes the tokens of the step as well, a [`WithStepTokens`] column, for its own mean over
//! tokens. A mixture takes no column: BCO in it has δ = 0, and a part with a mean over tokens takes
//! those of the batch at hand. For a moving δ ([`WithShift`](crate::batch::WithShift)) in a mixture, or
//! the tokens of a step, build the objective in code.
//!
//! A [`ReferenceSchedule`](crate::reference::ReferenceSchedule), TR-DPO's moving reference, comes
//! from a file as well.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::batch::{Batch, PolicyPair, ReferencedPair, WithStepTokens};
use crate::declare;
use crate::error::InvalidHyperparameter;
use crate::hyperparameter::non_negative;
#[allow(
    clippy::wildcard_imports,
    reason = "the list below names each objective, once"
)]
use crate::loss::*;
use crate::modifier::{Mixture, PolicySide, SftTarget, SftTerm};
use crate::needs::{ColumnKind, Needs, Values};
use crate::objective::{LossOutput, Objective};
use crate::part::NllNormalization;

type Checked<T> = Result<T, InvalidHyperparameter>;

/// An objective over `B` and the config that built it. Clones share it, and it prints as its
/// config, so that it may be a `#[module(skip)]` field of a model.
pub struct Configured<B: Batch> {
    objective: Arc<dyn Objective<B>>,
    config: ObjectiveConfig,
}

impl<B: Batch> Configured<B> {
    /// The config that built it.
    pub fn config(&self) -> &ObjectiveConfig {
        &self.config
    }
}

impl<B: Batch> Clone for Configured<B> {
    fn clone(&self) -> Self {
        Self {
            objective: Arc::clone(&self.objective),
            config: self.config.clone(),
        }
    }
}

impl<B: Batch> fmt::Debug for Configured<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.config.fmt(f)
    }
}

impl<B: Batch> Objective<B> for Configured<B> {
    fn forward(&self, batch: B) -> LossOutput<B::Rewards> {
        self.objective.forward(batch)
    }

    fn whole_batch(&self) -> bool {
        self.objective.whole_batch()
    }
}

/// Reasons why a config builds no objective over a batch.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A hyperparameter is outside its range.
    #[error(transparent)]
    Hyperparameter(#[from] InvalidHyperparameter),
    /// The objective takes other batches.
    #[error("`{loss}` takes {takes}; it does not take {batch}")]
    Batch {
        /// Name of the objective.
        loss: &'static str,
        /// Batches that it takes, in words.
        takes: String,
        /// The batch that was asked for, in words.
        batch: String,
    },
}

/// Declares [`ObjectiveConfig`]: every objective that a file can name, once.
macro_rules! objectives {
    ($($name:literal => $variant:ident($config:ty),)*) => {
        /// The config of any objective, tagged by `loss` in a file.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "loss")]
        #[non_exhaustive]
        pub enum ObjectiveConfig {
            $(
                #[doc = concat!("[`", stringify!($config), "`], `", $name, "` in a file.")]
                #[serde(rename = $name)]
                $variant($config),
            )*
        }

        impl ObjectiveConfig {
            /// Names of all objectives.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// The name of the objective in a file.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                }
            }

            /// Needs of the objective, for each type of batch that it takes. The first one has the
            /// fewest columns. Empty if the parts of a mixture, or an SFT term and its objective,
            /// have no batch in common.
            pub fn takes(&self) -> Vec<Needs> {
                match self {
                    $(Self::$variant(config) => config.takes(),)*
                }
            }

            /// Builds the objective over `B`; `None` if it does not take such a batch.
            fn over<B: Batch + 'static>(&self) -> Checked<Option<Arc<dyn Objective<B>>>> {
                match self {
                    $(Self::$variant(config) => config.over(),)*
                }
            }
        }
    };
}

objectives! {
    // Pairs against a reference.
    "dpo" => Dpo(DpoLossConfig),
    "ipo" => Ipo(IpoLossConfig),
    "hinge" => Hinge(HingeLossConfig),
    "gpo" => Gpo(GpoLossConfig),
    "discopop" => Discopop(DiscopopLossConfig),
    "exo_pair" => ExoPair(ExoPairLossConfig),
    "nca" => Nca(NcaLossConfig),
    "bco" => Bco(BcoLossConfig),
    "sppo" => Sppo(SppoLossConfig),
    "apo_zero" => ApoZero(ApoZeroLossConfig),
    "apo_down" => ApoDown(ApoDownLossConfig),
    "dpop" => Dpop(DpopLossConfig),
    "rdpo" => Rdpo(RdpoLossConfig),
    "cal_dpo" => CalDpo(CalDpoLossConfig),
    "aot" => Aot(AotLossConfig),
    "dpo_shift" => DpoShift(DpoShiftLossConfig),
    "hdpo" => Hdpo(HdpoLossConfig),
    "chipo" => Chipo(ChipoLossConfig),
    // The same with a column.
    "beta_dpo" => BetaDpo(BetaDpoLossConfig),
    "tdpo" => Tdpo(TdpoLossConfig),
    "rpo" => Rpo(RpoLossConfig),
    "rebel" => Rebel(RebelLossConfig),
    "rao_kupper" => RaoKupper(RaoKupperLossConfig),
    "davidson" => Davidson(DavidsonLossConfig),
    // Pairs without a reference.
    "simpo" => Simpo(SimpoLossConfig),
    "cpo" => Cpo(CpoLossConfig),
    "alpha_po" => AlphaPo(AlphaPoLossConfig),
    "orpo" => Orpo(OrpoLossConfig),
    "slic_hf" => SlicHf(SlicHfLossConfig),
    "simper" => Simper(SimperLossConfig),
    "asft" => Asft(AsftLossConfig),
    "tpo" => Tpo(TpoLossConfig),
    // Demonstrations.
    "sft" => Sft(SftLossConfig),
    // Samples.
    "grpo" => Grpo(GrpoLossConfig),
    // Single completions.
    "kto" => Kto(KtoLossConfig),
    "npo" => Npo(NpoLossConfig),
    "simnpo" => Simnpo(SimnpoLossConfig),
    "dro" => Dro(DroLossConfig),
    "astar_po" => AstarPo(AstarPoLossConfig),
    "qrpo" => Qrpo(QrpoLossConfig),
    // Lists.
    "plackett_luce" => PlackettLuce(PlackettLuceLossConfig),
    "sdpo" => Sdpo(SdpoLossConfig),
    "lipo" => Lipo(LipoLossConfig),
    "info_nca" => InfoNca(InfoNcaLossConfig),
    "nca_list" => NcaList(NcaListLossConfig),
    "exo_list" => ExoList(ExoListLossConfig),
    "rrhf" => Rrhf(RrhfLossConfig),
    "pro" => Pro(ProLossConfig),
    // Reward models.
    "bradley_terry" => BradleyTerry(BradleyTerryLossConfig),
    "bradley_terry_ties" => BradleyTerryTies(BradleyTerryTiesLossConfig),
    "reward_ranking" => RewardRanking(RewardRankingLossConfig),
    // Objectives made of objectives.
    "mixture" => Mixture(MixtureConfig),
    "with_sft" => WithSft(WithSftConfig),
}

impl burn::config::Config for ObjectiveConfig {}

impl ObjectiveConfig {
    /// Builds the objective over batches of type `B`.
    ///
    /// # Errors
    ///
    /// A value is outside its range, a mixture has no parts, or the objective does not take `B`.
    pub fn build<B: Batch + 'static>(&self) -> Result<Configured<B>, BuildError> {
        let objective = self.over()?.ok_or_else(|| {
            let takes: Vec<String> = self.takes().iter().map(ToString::to_string).collect();
            BuildError::Batch {
                loss: self.name(),
                takes: match takes.as_slice() {
                    [] => "no batch, since its parts have none in common".to_owned(),
                    takes => takes.join("; or "),
                },
                batch: B::needs().to_string(),
            }
        })?;
        Ok(Configured {
            objective,
            config: self.clone(),
        })
    }

    /// Checks the values, for a program that does not know its batches yet.
    ///
    /// # Errors
    ///
    /// A value is outside its range, or a mixture has no parts.
    pub fn check(&self) -> Result<(), InvalidHyperparameter> {
        // Every objective checks its values before it looks at the batch.
        self.over::<ReferencedPair>().map(drop)
    }
}

/// Needs over plain pairs of the same values as `plain`, if they are among those of an objective.
fn over_pairs<'a>(takes: &'a [Needs], plain: &Needs) -> Option<&'a Needs> {
    let matches = |needs: &&Needs| (*needs).clone().with_whole_batch(false) == *plain;
    takes.iter().find(matches)
}

/// A weighted sum of objectives: a [`Mixture`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MixtureConfig {
    /// Terms of the sum; one at least.
    pub parts: Vec<MixturePartConfig>,
}

impl MixtureConfig {
    /// A mixture of these parts.
    pub fn new(parts: Vec<MixturePartConfig>) -> Self {
        Self { parts }
    }

    /// Needs of the mixture: a reference as soon as one part needs it.
    fn takes(&self) -> Vec<Needs> {
        let [policy, referenced] = [PolicyPair::needs(), ReferencedPair::needs()];
        // Once for each part: mixtures nest.
        let parts: Vec<_> = self.parts.iter().map(|p| p.objective.takes()).collect();
        let free: Option<Vec<_>> = parts.iter().map(|part| over_pairs(part, &policy)).collect();
        let (plain, needs) = if free.is_some() {
            (policy, free)
        } else {
            let of_pair = |part| over_pairs(part, &referenced).or(over_pairs(part, &policy));
            let needs = parts.iter().map(|part| of_pair(part)).collect();
            (referenced, needs)
        };
        let needs = needs.filter(|needs: &Vec<&Needs>| !needs.is_empty());
        let whole = needs.map(|needs| needs.iter().any(|needs| needs.whole_batch));
        whole
            .map(|whole| plain.with_whole_batch(whole))
            .into_iter()
            .collect()
    }

    fn over<B: Batch + 'static>(&self) -> Checked<Option<Arc<dyn Objective<B>>>> {
        if self.parts.is_empty() {
            let allowed = "one part at least";
            return Err(InvalidHyperparameter::new("parts", 0.0, allowed));
        }
        let Some(needs) = self.takes().pop() else {
            // No batch, but values all the same.
            self.parts.iter().try_for_each(|part| {
                non_negative("weight", part.weight)?;
                part.objective.check()
            })?;
            return Ok(None);
        };
        // Each part is built once: mixtures nest.
        if !needs.has_reference() {
            let mixture = self.of(ObjectiveConfig::over::<PolicyPair>)?;
            return Ok(
                mixture.and_then(|mixture| declare::over::<PolicyPair, B>(Arc::new(mixture)))
            );
        }
        let referenced = ReferencedPair::needs();
        let mixture = self.of(|part| {
            if over_pairs(&part.takes(), &referenced).is_some() {
                return part.over::<ReferencedPair>();
            }
            let free = part.over::<PolicyPair>()?;
            Ok(free.map(|part| Arc::new(PolicySide(part)) as Arc<dyn Objective<_>>))
        })?;
        Ok(mixture.and_then(|mixture| declare::over::<ReferencedPair, B>(Arc::new(mixture))))
    }

    /// The mixture of what `build` makes of each part; `None` if it makes nothing of one.
    fn of<B: Batch + 'static>(
        &self,
        build: impl Fn(&ObjectiveConfig) -> Checked<Option<Arc<dyn Objective<B>>>>,
    ) -> Checked<Option<Mixture<B>>> {
        let mut mixture = None;
        for part in &self.parts {
            let Some(objective) = build(&part.objective)? else {
                return Ok(None);
            };
            mixture = Some(match mixture {
                None => Mixture::new(part.weight, objective)?,
                Some(mixture) => Mixture::and(mixture, part.weight, objective)?,
            });
        }
        Ok(mixture)
    }
}

/// One term of a mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MixturePartConfig {
    /// Weight of the term, ≥ 0.
    pub weight: f64,
    /// Objective that is weighed.
    pub objective: ObjectiveConfig,
}

impl MixturePartConfig {
    /// The term `weight`·`objective`.
    pub fn new(weight: f64, objective: ObjectiveConfig) -> Self {
        Self { weight, objective }
    }
}

/// An objective plus the chosen completion's NLL: an [`SftTerm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct WithSftConfig {
    /// Objective that the term is added to.
    pub objective: Box<ObjectiveConfig>,
    /// Weight α ≥ 0 of the term.
    pub weight: f64,
    /// The mean that the NLL takes.
    #[serde(default)]
    pub normalization: NllNormalization,
}

impl WithSftConfig {
    /// `objective` + `weight`·NLL, per sequence.
    pub fn new(objective: ObjectiveConfig, weight: f64) -> Self {
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

    /// Needs of the sum: those of the objective over plain pairs, and the same with the tokens of the
    /// step, which the objective does not get.
    fn takes(&self) -> Vec<Needs> {
        let takes = self.objective.takes();
        let plain = [ReferencedPair::needs(), PolicyPair::needs()];
        let needs = plain.iter().filter_map(|plain| over_pairs(&takes, plain));
        let of_step = |needs: &Needs| needs.clone().with_column(ColumnKind::StepTokens);
        let of_batch = |needs: &Needs| {
            let whole = needs.whole_batch || self.normalization.whole_batch();
            needs.clone().with_whole_batch(whole)
        };
        let plain = needs.clone().map(of_batch);
        plain.chain(needs.map(of_step)).collect()
    }

    fn over<B: Batch + 'static>(&self) -> Checked<Option<Arc<dyn Objective<B>>>> {
        Ok(match B::needs().values {
            Values::LogRatios => self.term::<ReferencedPair, B>()?,
            _ => self.term::<PolicyPair, B>()?,
        })
    }

    fn term<P, B>(&self) -> Checked<Option<Arc<dyn Objective<B>>>>
    where
        P: SftTarget + 'static,
        B: Batch + 'static,
    {
        non_negative("sft_weight", self.weight)?;
        let Some(objective) = self.objective.over::<P>()? else {
            return Ok(None);
        };
        let term = SftTerm::new(objective, self.weight)?.with_normalization(self.normalization);
        let term = Arc::new(term);
        let over = declare::over::<P, B>(Arc::clone(&term) as _);
        Ok(over.or_else(|| declare::over::<WithStepTokens<P>, B>(term)))
    }
}
