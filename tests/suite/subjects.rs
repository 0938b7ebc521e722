//! Every objective of the crate beside its formula in plain f64, `formulas.rs`, and the laws it keeps:
//! a new objective is a row here.

use std::f64::consts::LN_2;

use burn::tensor::Tensor;
use burn_preference::batch::Batch;
use burn_preference::config::{
    MixtureConfig, MixturePartConfig, ObjectiveConfig as Config, WithSftConfig,
};
use burn_preference::needs::Needs;
use burn_preference::{
    AlphaPoLossConfig, AotLossConfig, ApoDownLossConfig, ApoZeroLossConfig, AsftLossConfig,
    BcoLossConfig, BetaDpoLossConfig, BradleyTerryLossConfig, BradleyTerryTiesLossConfig,
    CalDpoLossConfig, ChipoLossConfig, CpoLossConfig, DavidsonLossConfig, DiscopopLossConfig,
    Divergence, DpoLossConfig, DpoShiftLossConfig, DpopLossConfig, ExoListLossConfig,
    ExoPairLossConfig, GapDistance, GpoLossConfig, HdpoLossConfig, HingeLossConfig,
    InfoNcaLossConfig, IpoLossConfig, LabelNoise, Link, LipoLossConfig, LossOutput,
    NcaListLossConfig, NcaLossConfig, Normalization, Objective, OrpoLossConfig, Pair,
    PlackettLuceLossConfig, ProLossConfig, Ranked, RaoKupperLossConfig, RdpoLossConfig,
    RebelLossConfig, ReferencedPair, RegressionUnit, RelativeLogProbs, RewardPair,
    RewardRankingLossConfig, RpoLossConfig, RrhfLossConfig, SdpoLossConfig, SimperLossConfig,
    SimpoLossConfig, SlicHfLossConfig, SppoLossConfig, TdpoLossConfig, TieModel, TpoLossConfig,
    Weighted, WithMargin, WithMeanMargin, WithNll, WithPreference, WithScores, WithSequenceKl,
    WithShift, WithTies, WithWeights,
};

use crate::dual::Dual;
use crate::formulas::{self, Candidates, Columns, Completion, PairOf};
use crate::scalar::{List, Row};
use crate::support::{Pairs, bools, floats, sequence};

pub type PairOutput = LossOutput<Pair<Tensor<1>>>;

/// Which laws an objective keeps, beyond those that all keep.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "a checklist")]
pub struct Laws {
    /// The same constant on ℓ and ℓ° of one side changes nothing: only ρ counts.
    pub ratio_only: bool,
    /// The same constant on ℓ_w and ℓ_l changes nothing: only the difference counts.
    pub prompt_shift: bool,
    /// A larger ℓ_w never costs more.
    pub monotone: bool,
    /// The loss of an example does not depend on the rest of the batch.
    pub per_example: bool,
    /// The loss where policy = reference.
    pub at_reference: Option<f64>,
}

/// An objective over pairs. Its columns, if any, hold the values of the functions below.
pub struct PairSubject {
    pub name: &'static str,
    pub forward: Box<dyn Fn(ReferencedPair) -> PairOutput>,
    losses: Box<dyn Fn(&[PairOf<Completion>]) -> Vec<Dual>>,
    rewards: Box<dyn Fn(PairOf<Completion>) -> PairOf<f64>>,
    exponent: Box<dyn Fn(PairOf<Completion>) -> f64>,
    pub laws: Laws,
}

/// Where the documentation says that exponents are held: beyond, the formula is another one.
pub const MAX_EXPONENT: f64 = 80.0;

/// A pair for the formulas, of which one side may move.
fn completions(row: Row, moves: Option<usize>) -> PairOf<Completion> {
    let sides = [(row.w, row.ref_w, row.len_w), (row.l, row.ref_l, row.len_l)];
    let mut at = 0..;
    sides.map(|(sum, reference, length)| Completion {
        sum: Dual {
            value: sum,
            slope: f64::from(moves == at.next()),
        },
        reference,
        length,
    })
}

impl PairSubject {
    /// The losses of a batch.
    pub fn losses(&self, rows: &[Row]) -> Vec<f64> {
        let rows: Vec<_> = rows.iter().map(|row| completions(*row, None)).collect();
        let losses = (self.losses)(&rows).into_iter();
        losses.map(|loss| loss.value).collect()
    }

    /// d Σ losses / d ℓ of the chosen and the rejected completion of pair `i`.
    pub fn gradient(&self, rows: &[Row], i: usize) -> PairOf<f64> {
        [0, 1].map(|side| {
            let rows = rows.iter().enumerate();
            let rows: Vec<_> = rows
                .map(|(j, row)| completions(*row, (i == j).then_some(side)))
                .collect();
            (self.losses)(&rows).into_iter().sum::<Dual>().slope
        })
    }

    pub fn rewards(&self, row: Row) -> PairOf<f64> {
        (self.rewards)(completions(row, None))
    }

    /// The largest number that the formula takes the exponential of, if it takes one.
    pub fn exponent(&self, row: Row) -> Option<f64> {
        let exponent = (self.exponent)(completions(row, None));
        (exponent > f64::NEG_INFINITY || exponent.is_nan()).then_some(exponent)
    }

    /// Whether an exponential of this row is held.
    pub fn is_held(&self, row: Row) -> bool {
        self.exponent(row)
            .is_some_and(|exponent| exponent > MAX_EXPONENT)
    }
}

/// The pairs of a batch, for the scalar code.
pub fn rows(pairs: &Pairs) -> Vec<Row> {
    (0..pairs.len())
        .map(|i| Row {
            w: pairs.chosen[i],
            l: pairs.rejected[i],
            ref_w: pairs.ref_chosen[i],
            ref_l: pairs.ref_rejected[i],
            len_w: pairs.chosen_len[i],
            len_l: pairs.rejected_len[i],
        })
        .collect()
}

// Columns by the index of the example.
fn margin(i: usize) -> f64 {
    0.4 * i as f64 - 0.7
}
fn probability(i: usize) -> f64 {
    [0.9, 0.5, 1.0, 0.0, 0.25, 0.6, 0.75][i % 7]
}
fn score_w(i: usize) -> f64 {
    1.5 - 0.6 * i as f64
}
fn score_l(i: usize) -> f64 {
    0.2 * i as f64
}
fn tied(i: usize) -> bool {
    i % 2 == 1
}
fn kl_w(i: usize) -> f64 {
    0.3 * i as f64
}
fn kl_l(i: usize) -> f64 {
    2.0 - 0.1 * i as f64
}
/// The gold completion of each example: ℓ and tokens.
fn gold(i: usize) -> (f64, usize) {
    (-1.5 - 0.75 * i as f64, 1 + i % 4)
}
/// Scalars: BCO's δ and β-DPO's M₀.
const SHIFT: f64 = 0.3;
const MEAN_MARGIN: f64 = 0.2;

/// What stands beside the pairs of a subject.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Column {
    None,
    Margin,
    Preference,
    Scores,
    Ties,
    Kl,
    Gold,
    Shift,
    MeanMargin,
}

impl Column {
    /// Its values, for `n` pairs.
    fn values(self, n: usize) -> Columns {
        let of = |f: fn(usize) -> f64| (0..n).map(f).collect::<Vec<f64>>();
        let constants = |f: fn(usize) -> f64| (0..n).map(f).map(Dual::constant).collect();
        let mut columns = Columns::default();
        match self {
            Self::None => {}
            Self::Margin => columns.margins = of(margin),
            Self::Preference => columns.probabilities = of(probability),
            Self::Scores => columns.scores = [of(score_w), of(score_l)],
            Self::Ties => columns.ties = (0..n).map(tied).collect(),
            Self::Kl => columns.kl = [constants(kl_w), constants(kl_l)],
            Self::Gold => {
                let gold = (0..n).map(gold);
                columns.gold = gold.map(|(sum, n)| (Dual::constant(sum), n)).collect();
            }
            Self::Shift => columns.shift = SHIFT,
            Self::MeanMargin => columns.mean_margin = MEAN_MARGIN,
        }
        columns
    }

    /// The objective of the crate on pairs with this column.
    fn forward(self, config: &Config) -> Box<dyn Fn(ReferencedPair) -> PairOutput> {
        match self {
            Self::None if config.takes().iter().any(Needs::has_reference) => built(config, |b| b),
            Self::None => built(config, |b| b.policy()),
            Self::Margin => built(config, |b| {
                let margin = column(&b, margin);
                WithMargin::new(b, margin).unwrap()
            }),
            Self::Preference => built(config, |b| {
                let p = column(&b, probability);
                WithPreference::new(b, p).unwrap()
            }),
            Self::Scores => built(config, |b| {
                let scores = Pair::new(column(&b, score_w), column(&b, score_l)).unwrap();
                WithScores::new(b, scores).unwrap()
            }),
            Self::Ties => built(config, |b| {
                let tied = ties(&b);
                WithTies::new(b, tied).unwrap()
            }),
            Self::Kl => built(config, |b| {
                let kl = Pair::new(column(&b, kl_w), column(&b, kl_l)).unwrap();
                WithSequenceKl::new(b, kl).unwrap()
            }),
            Self::Gold => built(config, |b| {
                let (sums, lengths): (Vec<f64>, Vec<usize>) = (0..b.len()).map(gold).unzip();
                let gold = sequence(constants(&b, &sums), &lengths);
                WithNll::new(b.policy(), gold).unwrap()
            }),
            Self::Shift => built(config, |b| {
                let shift = constants(&b, &[SHIFT]);
                WithShift::new(b, shift).unwrap()
            }),
            Self::MeanMargin => built(config, |b| {
                let mean_margin = constants(&b, &[MEAN_MARGIN]);
                WithMeanMargin::new(b, mean_margin).unwrap()
            }),
        }
    }
}

/// The objective of a config over what `batch` makes of pairs.
fn built<B, F>(config: &Config, batch: F) -> Box<dyn Fn(ReferencedPair) -> PairOutput>
where
    B: Batch<Rewards = Pair<Tensor<1>>> + 'static,
    F: Fn(ReferencedPair) -> B + 'static,
{
    let objective = config.build::<B>().unwrap();
    Box::new(move |b| objective.forward(batch(b)))
}

fn column(batch: &ReferencedPair, f: fn(usize) -> f64) -> Tensor<1> {
    constants(batch, &(0..batch.len()).map(f).collect::<Vec<_>>())
}

fn ties(batch: &ReferencedPair) -> Tensor<1, burn::tensor::Bool> {
    bools(&(0..batch.len()).map(tied).collect::<Vec<_>>())
}

/// Numbers in the batch's own type.
fn constants(batch: &ReferencedPair, values: &[f64]) -> Tensor<1> {
    floats(values, batch.chosen.policy().sum().dtype())
}

/// The laws of an objective that sees Δ alone.
const OF_DELTA: Laws = Laws {
    ratio_only: true,
    prompt_shift: true,
    monotone: true,
    per_example: true,
    at_reference: Some(LN_2),
};
const OF_RATIOS: Laws = Laws {
    prompt_shift: false,
    ..OF_DELTA
};
const OF_POLICY: Laws = Laws {
    ratio_only: false,
    prompt_shift: false,
    monotone: true,
    per_example: true,
    at_reference: None,
};

fn at(laws: Laws, value: f64) -> Laws {
    Laws {
        at_reference: Some(value),
        ..laws
    }
}

fn anywhere(laws: Laws) -> Laws {
    Laws {
        at_reference: None,
        ..laws
    }
}

fn not_monotone(laws: Laws) -> Laws {
    Laws {
        monotone: false,
        ..laws
    }
}

/// A config with the laws of its loss, and a column.
fn subject(name: &'static str, laws: Laws, config: Config, column: Column) -> PairSubject {
    let (of_rewards, of_exponent) = (config.clone(), config.clone());
    PairSubject {
        name,
        forward: column.forward(&config),
        losses: Box::new(move |rows| formulas::pairs(&config, rows, &column.values(rows.len()))),
        rewards: Box::new(move |row| formulas::pair_rewards(&of_rewards, row)),
        exponent: Box::new(move |row| formulas::exponent(&of_exponent, row)),
        laws,
    }
}

/// Every objective over pairs, at reward scale β.
pub fn pairs(beta: f64) -> Vec<PairSubject> {
    let mut all = dpo_family(beta);
    all.extend(against_reference(beta));
    all.extend(with_columns(beta));
    all.extend(of_batches(beta));
    all.extend(reference_free(beta));
    all.extend(of_gold(beta));
    all.extend(of_rewards(beta));
    all
}

const DIVERGENCES: [Divergence; 7] = [
    Divergence::ReverseKl,
    Divergence::ForwardKl,
    Divergence::JensenShannon,
    Divergence::Alpha(0.5),
    Divergence::Alpha(1e-3),
    Divergence::Alpha(2.0),
    Divergence::ChiSquared,
];

const NOISES: [LabelNoise; 4] = [
    LabelNoise::Clean,
    LabelNoise::Conservative(0.0),
    LabelNoise::Conservative(0.3),
    LabelNoise::Robust(0.3),
];

fn is_clean(noise: LabelNoise) -> bool {
    matches!(noise, LabelNoise::Clean | LabelNoise::Conservative(0.0))
}

fn dpo_family(beta: f64) -> Vec<PairSubject> {
    let mut all = Vec::new();
    let mut add = |name, laws, config| all.push(subject(name, laws, config, Column::None));
    for normalization in [Normalization::Sum, Normalization::Mean] {
        for d in DIVERGENCES {
            let of_delta = d == Divergence::ReverseKl && normalization == Normalization::Sum;
            let laws = if of_delta { OF_DELTA } else { OF_RATIOS };
            for n in NOISES {
                let dpo = DpoLossConfig::new()
                    .with_beta(beta)
                    .with_label_noise(n)
                    .with_divergence(d)
                    .with_normalization(normalization);
                let laws = if is_clean(n) {
                    laws
                } else {
                    not_monotone(laws)
                };
                add("dpo", laws, Config::Dpo(dpo));
            }
            let ipo = IpoLossConfig::new()
                .with_tau(beta)
                .with_divergence(d)
                .with_normalization(normalization);
            let at_zero = 0.25 / beta.powi(2);
            add("ipo", at(not_monotone(laws), at_zero), Config::Ipo(ipo));
            let hinge = HingeLossConfig::new()
                .with_beta(beta)
                .with_divergence(d)
                .with_normalization(normalization);
            add("hinge", at(laws, 1.0), Config::Hinge(hinge));
            if normalization == Normalization::Mean {
                continue;
            }
            for t in [0.05, 1.0, 3.0] {
                let discopop = DiscopopLossConfig::new()
                    .with_beta(beta)
                    .with_divergence(d)
                    .with_temperature(t);
                let laws = at(not_monotone(laws), 0.5 * LN_2 + 0.5);
                add("discopop", laws, Config::Discopop(discopop));
            }
            let exo = ExoPairLossConfig::new()
                .with_beta(beta)
                .with_divergence(d)
                .with_label_smoothing(0.1);
            let at_zero = -LN_2 - 0.5 * (0.9_f64.ln() + 0.1_f64.ln());
            add("exo", at(not_monotone(laws), at_zero), Config::ExoPair(exo));
        }
    }
    all
}

fn against_reference(beta: f64) -> Vec<PairSubject> {
    let mut all = Vec::new();
    let mut add = |name, laws, config| all.push(subject(name, laws, config, Column::None));
    for (link, at_zero) in [
        (Link::Exponential, 1.0),
        (Link::SquaredHinge, 1.0),
        (Link::Savage, 0.25),
    ] {
        let gpo = GpoLossConfig::new().with_beta(beta).with_link(link);
        add("gpo", at(OF_DELTA, at_zero), Config::Gpo(gpo));
    }
    add(
        "nca",
        at(not_monotone(OF_RATIOS), 2.0 * LN_2),
        Config::Nca(NcaLossConfig::new().with_beta(beta)),
    );
    let bco = Config::Bco(BcoLossConfig::new().with_beta(beta));
    add("bco", at(OF_RATIOS, 2.0 * LN_2), bco.clone());
    add(
        "sppo",
        at(not_monotone(OF_RATIOS), 0.5 / beta.powi(2)),
        Config::Sppo(SppoLossConfig::new().with_beta(beta)),
    );
    add(
        "apo zero",
        at(OF_RATIOS, 1.0),
        Config::ApoZero(ApoZeroLossConfig::new().with_beta(beta)),
    );
    add(
        "apo down",
        at(not_monotone(OF_RATIOS), 1.0),
        Config::ApoDown(ApoDownLossConfig::new().with_beta(beta)),
    );
    for penalty in [0.0, 5.0, 50.0] {
        let dpop = DpopLossConfig::new().with_beta(beta).with_penalty(penalty);
        add("dpop", OF_RATIOS, Config::Dpop(dpop));
    }
    let rdpo = RdpoLossConfig::new().with_beta(beta).with_length_cost(0.03);
    add("r-dpo", anywhere(OF_DELTA), Config::Rdpo(rdpo));
    let cal_dpo = CalDpoLossConfig::new().with_beta(beta);
    add(
        "cal-dpo",
        at(not_monotone(OF_RATIOS), LN_2 + 0.7 * 0.5 / beta.powi(2)),
        Config::CalDpo(cal_dpo.with_calibration_weight(0.7)),
    );
    let shift = DpoShiftLossConfig::new().with_beta(beta);
    add(
        "dpo-shift",
        OF_RATIOS,
        Config::DpoShift(shift.with_rejected_share(0.6)),
    );
    let dpo = Config::Dpo(DpoLossConfig::new().with_beta(beta));
    let parts = vec![
        MixturePartConfig::new(0.8, dpo.clone()),
        MixturePartConfig::new(0.2, bco),
    ];
    add(
        "mixture",
        at(OF_RATIOS, 0.8 * LN_2 + 0.4 * LN_2),
        Config::Mixture(MixtureConfig::new(parts)),
    );
    add(
        "dpo + sft",
        Laws {
            monotone: true,
            ..OF_POLICY
        },
        Config::WithSft(WithSftConfig::new(dpo, 0.7)),
    );
    add(
        "h-dpo",
        Laws {
            ratio_only: false,
            ..anywhere(OF_DELTA)
        },
        Config::Hdpo(HdpoLossConfig::new(0.9).with_beta(beta)),
    );
    for bound in [None, Some(0.8)] {
        let chipo = ChipoLossConfig::new().with_beta(beta);
        add(
            "chipo",
            OF_RATIOS,
            Config::Chipo(chipo.with_reward_bound(bound)),
        );
    }
    all
}

fn with_columns(beta: f64) -> Vec<PairSubject> {
    let mut all = Vec::new();
    let mut add = |name, laws, config, column| {
        all.push(subject(name, anywhere(laws), config, column));
    };
    for n in NOISES {
        let dpo = DpoLossConfig::new().with_beta(beta).with_label_noise(n);
        let dpo = Config::Dpo(dpo);
        add("odpo", not_monotone(OF_DELTA), dpo.clone(), Column::Margin);
        add(
            "soft-label dpo",
            not_monotone(OF_DELTA),
            dpo,
            Column::Preference,
        );
    }
    add(
        "sppo",
        not_monotone(OF_RATIOS),
        Config::Sppo(SppoLossConfig::new().with_beta(beta)),
        Column::Preference,
    );
    for distance in [
        GapDistance::BackwardKl,
        GapDistance::ForwardKl,
        GapDistance::Squared,
    ] {
        let rpo = RpoLossConfig::new().with_beta(beta).with_score_scale(1.3);
        add(
            "rpo",
            not_monotone(OF_DELTA),
            Config::Rpo(rpo.with_distance(distance)),
            Column::Scores,
        );
    }
    let rao_kupper = RaoKupperLossConfig::new().with_beta(beta);
    add(
        "rao-kupper",
        not_monotone(OF_DELTA),
        Config::RaoKupper(rao_kupper.with_tie_factor(2.5)),
        Column::Ties,
    );
    let davidson = DavidsonLossConfig::new().with_beta(beta);
    add(
        "davidson",
        not_monotone(OF_DELTA),
        Config::Davidson(davidson.with_tie_factor(0.7)),
        Column::Ties,
    );
    add(
        "tdpo",
        OF_DELTA,
        Config::Tdpo(TdpoLossConfig::new().with_beta(beta).with_kl_weight(0.4)),
        Column::Kl,
    );
    add(
        "bco with δ",
        OF_RATIOS,
        Config::Bco(BcoLossConfig::new().with_beta(beta)),
        Column::Shift,
    );
    for (name, unit) in [
        ("rebel", RegressionUnit::LogRatio),
        ("rebel in units of the score", RegressionUnit::Score),
    ] {
        let rebel = RebelLossConfig::new().with_score_scale(1.3);
        add(
            name,
            not_monotone(OF_DELTA),
            Config::Rebel(rebel.with_unit(unit)),
            Column::Scores,
        );
    }
    // No file names it.
    let dpo = DpoLossConfig::new().with_beta(beta);
    let objective = Weighted(dpo.init());
    let of = || {
        subject(
            "weighted",
            anywhere(OF_DELTA),
            Config::Dpo(dpo.clone()),
            Column::None,
        )
    };
    let plain = of();
    all.push(PairSubject {
        forward: Box::new(move |b| {
            let weights = column(&b, probability);
            objective.forward(WithWeights::new(b, weights).unwrap())
        }),
        losses: Box::new(move |rows| {
            let losses = (plain.losses)(rows).into_iter().enumerate();
            losses.map(|(i, loss)| probability(i) * loss).collect()
        }),
        ..of()
    });
    all
}

/// Objectives whose losses depend on the whole batch.
fn of_batches(beta: f64) -> Vec<PairSubject> {
    let laws = Laws {
        per_example: false,
        monotone: false,
        ..OF_RATIOS
    };
    let mut all = Vec::new();
    for n in NOISES {
        for paired in [true, false] {
            let aot = AotLossConfig::new()
                .with_beta(beta)
                .with_label_noise(n)
                .with_paired(paired);
            // At the reference the sides are sorted apart: only the paired form is DPO there.
            let laws = Laws {
                ratio_only: !paired,
                at_reference: paired.then_some(LN_2),
                ..laws
            };
            all.push(subject("aot", laws, Config::Aot(aot), Column::None));
        }
    }
    let laws = Laws {
        prompt_shift: true,
        at_reference: Some(LN_2),
        ..laws
    };
    let beta_dpo = Config::BetaDpo(BetaDpoLossConfig::new().with_beta(beta));
    all.push(subject("beta-dpo", laws, beta_dpo, Column::MeanMargin));
    all
}

fn reference_free(beta: f64) -> Vec<PairSubject> {
    let mut all = Vec::new();
    let mut add = |name, laws, config| all.push(subject(name, laws, config, Column::None));
    let orpo = OrpoLossConfig::new().with_odds_ratio_weight(beta);
    add("orpo", OF_POLICY, Config::Orpo(orpo));
    let slic_hf = SlicHfLossConfig::new().with_target_margin(2.0);
    add(
        "slic-hf",
        OF_POLICY,
        Config::SlicHf(slic_hf.with_sft_weight(beta)),
    );
    add("simper", OF_POLICY, Config::Simper(SimperLossConfig::new()));
    let asft = AsftLossConfig::new().with_alignment_weight(beta);
    add("asft", OF_POLICY, Config::Asft(asft));
    for n in NOISES {
        let laws = not_monotone(OF_POLICY);
        let simpo = SimpoLossConfig::new()
            .with_beta(beta)
            .with_target_margin(0.4)
            .with_label_noise(n);
        add("simpo", laws, Config::Simpo(simpo));
        let cpo = CpoLossConfig::new()
            .with_beta(beta)
            .with_sft_weight(0.6)
            .with_label_noise(n);
        add("cpo", laws, Config::Cpo(cpo));
        for alpha in [0.25, -0.5, 0.0, 1e-4] {
            let alphapo = AlphaPoLossConfig::new()
                .with_beta(beta)
                .with_target_margin(0.4)
                .with_alpha(alpha)
                .with_label_noise(n);
            add("alphapo", laws, Config::AlphaPo(alphapo));
        }
    }
    all
}

fn of_gold(beta: f64) -> Vec<PairSubject> {
    let mut all = Vec::new();
    for (n, normalization) in [
        (LabelNoise::Clean, Normalization::Sum),
        (LabelNoise::Conservative(0.3), Normalization::Mean),
    ] {
        let tpo = TpoLossConfig::new()
            .with_beta(beta)
            .with_target_margin(0.4)
            .with_sft_weight(0.6)
            .with_normalization(normalization)
            .with_label_noise(n);
        let laws = Laws {
            prompt_shift: normalization == Normalization::Sum,
            monotone: n == LabelNoise::Clean,
            ..OF_POLICY
        };
        all.push(subject("tpo", laws, Config::Tpo(tpo), Column::Gold));
    }
    all
}

/// Objectives of reward models: ℓ of the policy stands for what the model says.
fn of_rewards(weight: f64) -> Vec<PairSubject> {
    fn of_model<B: Batch<Rewards = Pair<Tensor<1>>> + 'static>(
        (name, laws): (&'static str, Laws),
        config: Config,
        column: Column,
        batch: impl Fn(ReferencedPair, RewardPair) -> B + 'static,
    ) -> PairSubject {
        let says = |b: &ReferencedPair| {
            RewardPair::new(b.chosen.policy().sum(), b.rejected.policy().sum()).unwrap()
        };
        let forward = built(&config, move |b| {
            let rewards = says(&b);
            batch(b, rewards)
        });
        PairSubject {
            name,
            forward,
            losses: Box::new(move |rows| {
                let rewards: Vec<PairOf<Dual>> =
                    rows.iter().map(|row| row.map(|y| y.sum)).collect();
                formulas::rewards(&config, &rewards, &column.values(rows.len()))
            }),
            rewards: Box::new(|row| row.map(|y| y.sum.value)),
            exponent: Box::new(|_| f64::NEG_INFINITY),
            laws,
        }
    }
    let mut all = Vec::new();
    for centering in [0.0, weight] {
        let laws = Laws {
            prompt_shift: centering == 0.0,
            ..not_monotone(OF_POLICY)
        };
        for n in NOISES {
            let bradley_terry = BradleyTerryLossConfig::new()
                .with_centering_weight(centering)
                .with_label_noise(n);
            let bradley_terry = Config::BradleyTerry(bradley_terry);
            let plain = Laws {
                monotone: is_clean(n) && centering == 0.0,
                ..laws
            };
            all.push(of_model(
                ("bradley-terry", plain),
                bradley_terry.clone(),
                Column::None,
                |_, pair| pair,
            ));
            all.push(of_model(
                ("bradley-terry with margins", plain),
                bradley_terry.clone(),
                Column::Margin,
                |b, pair| WithMargin::new(pair, column(&b, margin)).unwrap(),
            ));
            all.push(of_model(
                ("bradley-terry with soft labels", laws),
                bradley_terry,
                Column::Preference,
                |b, pair| WithPreference::new(pair, column(&b, probability)).unwrap(),
            ));
        }
        for model in [TieModel::RaoKupper(2.5), TieModel::Davidson(0.7)] {
            let with_ties = BradleyTerryTiesLossConfig::new()
                .with_centering_weight(centering)
                .with_tie_model(model);
            all.push(of_model(
                ("bradley-terry with ties", laws),
                Config::BradleyTerryTies(with_ties),
                Column::Ties,
                |b, pair| WithTies::new(pair, ties(&b)).unwrap(),
            ));
        }
    }
    all
}

/// An objective over lists.
pub struct ListSubject {
    pub name: &'static str,
    pub forward: Box<dyn Fn(Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>>>,
    config: Config,
}

impl ListSubject {
    /// The present candidates for the formulas, one of which may move.
    fn candidates(list: &List, moves: Option<usize>) -> Candidates {
        let of = |i: usize| Completion {
            sum: Dual {
                value: list.sums[i],
                slope: f64::from(moves == Some(i)),
            },
            reference: list.references[i],
            length: list.lengths[i],
        };
        Candidates {
            completions: (0..list.len()).map(of).collect(),
            scores: list.scores.clone(),
        }
    }

    /// The loss of one list of present candidates.
    pub fn loss(&self, list: &List) -> f64 {
        formulas::list(&self.config, &Self::candidates(list, None)).value
    }

    /// Its slope along ℓ of candidate `i`.
    pub fn slope(&self, list: &List, i: usize) -> f64 {
        formulas::list(&self.config, &Self::candidates(list, Some(i))).slope
    }

    pub fn rewards(&self, list: &List) -> Vec<f64> {
        formulas::list_rewards(&self.config, &Self::candidates(list, None))
    }
}

/// Every objective over lists.
pub fn lists(beta: f64) -> Vec<ListSubject> {
    fn built<L: 'static>(
        config: &Config,
        batch: impl Fn(Ranked<RelativeLogProbs<2>>) -> Ranked<L> + 'static,
    ) -> Box<dyn Fn(Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>>>
    where
        Ranked<L>: Batch<Rewards = Tensor<2>>,
    {
        let objective = config.build::<Ranked<L>>().unwrap();
        Box::new(move |ranked| objective.forward(batch(ranked)))
    }
    let against = |name, config| ListSubject {
        name,
        forward: built(&config, |batch| batch),
        config,
    };
    let of_policy = |name, config| ListSubject {
        name,
        forward: built(&config, |batch: Ranked<RelativeLogProbs<2>>| batch.policy()),
        config,
    };
    let mut all = vec![
        of_policy(
            "pro",
            Config::Pro(ProLossConfig::new().with_sft_weight(beta)),
        ),
        against(
            "plackett-luce",
            Config::PlackettLuce(PlackettLuceLossConfig::new().with_beta(beta)),
        ),
        against("s-dpo", Config::Sdpo(SdpoLossConfig::new().with_beta(beta))),
        against("lipo", Config::Lipo(LipoLossConfig::new().with_beta(beta))),
    ];
    for kappa in [0.0, 0.6, 1.0] {
        let rrhf = RrhfLossConfig::new()
            .with_length_penalty(kappa)
            .with_sft_weight(beta);
        all.push(of_policy("rrhf", Config::Rrhf(rrhf)));
    }
    for centering in [0.0, beta] {
        let ranking = RewardRankingLossConfig::new().with_centering_weight(centering);
        let config = Config::RewardRanking(ranking);
        all.push(ListSubject {
            name: "plackett-luce of rewards",
            forward: built(&config, |batch: Ranked<RelativeLogProbs<2>>| {
                let says = batch.candidates().policy().sum();
                Ranked::new(says, batch.scores(), batch.present()).unwrap()
            }),
            config,
        });
    }
    for t in [0.5, 1.0] {
        let nca = NcaListLossConfig::new()
            .with_beta(beta)
            .with_score_temperature(t);
        all.push(against("nca (lists)", Config::NcaList(nca)));
        let info = InfoNcaLossConfig::new()
            .with_beta(beta)
            .with_score_temperature(t);
        all.push(against("infonca", Config::InfoNca(info)));
        let exo = ExoListLossConfig::new()
            .with_beta(beta)
            .with_score_temperature(t);
        all.push(against("exo (lists)", Config::ExoList(exo)));
    }
    all
}
