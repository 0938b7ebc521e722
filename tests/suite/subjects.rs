//! Every objective of the crate beside its formula in plain f64, and the laws it keeps: a new
//! objective is a row here.

#![expect(clippy::too_many_lines, reason = "tables: a row per objective")]

use std::f64::consts::LN_2;

use burn::tensor::Tensor;
use burn_preference::{
    AlphaPoLossConfig, AotLossConfig, ApoDownLossConfig, ApoZeroLossConfig, AsftLossConfig,
    BcoLossConfig, BetaDpoLossConfig, BradleyTerryLossConfig, BradleyTerryTiesLossConfig,
    CalDpoLossConfig, ChipoLossConfig, CpoLossConfig, DavidsonLossConfig, DiscopopLossConfig,
    Divergence, DpoLossConfig, DpoShiftLossConfig, DpopLossConfig, ExoListLossConfig,
    ExoPairLossConfig, GapDistance, GpoLossConfig, HdpoLossConfig, HingeLossConfig,
    InfoNcaLossConfig, IpoLossConfig, LabelNoise, Link, LipoLossConfig, LossOutput, Mixture,
    NcaListLossConfig, NcaLossConfig, Normalization, Objective, OrpoLossConfig, Pair,
    PlackettLuceLossConfig, PolicyPair, ProLossConfig, Ranked, RaoKupperLossConfig, RdpoLossConfig,
    RebelLossConfig, ReferencedPair, RegressionUnit, RelativeLogProbs, RewardPair,
    RewardRankingLossConfig, RpoLossConfig, RrhfLossConfig, SdpoLossConfig, SequenceLogProbs,
    SftTerm, SimperLossConfig, SimpoLossConfig, SlicHfLossConfig, SppoLossConfig, TdpoLossConfig,
    TieModel, TpoLossConfig, Weighted, WithMargin, WithMeanMargin, WithNll, WithPreference,
    WithScores, WithSequenceKl, WithShift, WithTies, WithWeights, batch::Batch,
};

use crate::scalar::{
    List, Row, bernoulli_kl, exponent, g, ln_sigmoid, log_softmax, logsumexp, noise, odds, ranks,
    relu, sigmoid, softmax, sorted,
};
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
    /// Losses of a batch; the second argument is what carries no gradient.
    pub losses: Box<dyn Fn(&[Row], &[Row]) -> Vec<f64>>,
    pub rewards: Box<dyn Fn(Row) -> (f64, f64)>,
    /// The largest number that the formula takes the exponential of, if it takes one.
    pub exponent: Option<Box<dyn Fn(Row) -> f64>>,
    pub laws: Laws,
}

/// Where the documentation says that exponents are held: beyond, the formula is another one.
pub const MAX_EXPONENT: f64 = 80.0;

impl PairSubject {
    /// Whether an exponential of this row is held.
    pub fn is_held(&self, row: Row) -> bool {
        let exponent = self.exponent.as_ref();
        exponent.is_some_and(|exponent| exponent(row) > MAX_EXPONENT)
    }

    fn with_exponent(self, exponent: impl Fn(Row) -> f64 + 'static) -> Self {
        Self {
            exponent: Some(Box::new(exponent)),
            ..self
        }
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
/// Scalars: BCO's δ and β-DPO's M₀.
const SHIFT: f64 = 0.3;
const MEAN_MARGIN: f64 = 0.2;

fn column(batch: &ReferencedPair, f: fn(usize) -> f64) -> Tensor<1> {
    constants(batch, &(0..batch.len()).map(f).collect::<Vec<_>>())
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

fn not_monotone(laws: Laws) -> Laws {
    Laws {
        monotone: false,
        ..laws
    }
}

/// A subject whose losses come one row at a time.
fn subject(
    name: &'static str,
    laws: Laws,
    forward: impl Fn(ReferencedPair) -> PairOutput + 'static,
    loss: impl Fn(usize, Row) -> f64 + 'static,
    rewards: impl Fn(Row) -> (f64, f64) + 'static,
) -> PairSubject {
    let losses = move |rows: &[Row], _: &[Row]| {
        let rows = rows.iter().enumerate();
        rows.map(|(i, row)| loss(i, *row)).collect()
    };
    PairSubject {
        name,
        forward: Box::new(forward),
        losses: Box::new(losses),
        rewards: Box::new(rewards),
        exponent: None,
        laws,
    }
}

fn of(
    objective: impl Objective<ReferencedPair> + 'static,
) -> impl Fn(ReferencedPair) -> PairOutput {
    move |batch| objective.forward(batch)
}

fn of_policy(
    objective: impl Objective<PolicyPair> + 'static,
) -> impl Fn(ReferencedPair) -> PairOutput {
    move |batch| objective.forward(batch.policy())
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

fn dpo_family(beta: f64) -> Vec<PairSubject> {
    let mut all = Vec::new();
    for normalization in [Normalization::Sum, Normalization::Mean] {
        let per = move |length: usize| {
            if normalization == Normalization::Mean {
                length.max(1) as f64
            } else {
                1.0
            }
        };
        for d in DIVERGENCES {
            let r = move |row: Row| {
                let w = g(d, row.rho_w()) / per(row.len_w);
                (w, g(d, row.rho_l()) / per(row.len_l))
            };
            let of_delta = d == Divergence::ReverseKl && normalization == Normalization::Sum;
            let laws = if of_delta { OF_DELTA } else { OF_RATIOS };
            let of_g = move |row: Row| exponent(d, row.rho_w()).max(exponent(d, row.rho_l()));
            for n in NOISES {
                let dpo = DpoLossConfig::new()
                    .with_beta(beta)
                    .with_label_noise(n)
                    .with_divergence(d)
                    .with_normalization(normalization);
                let clean = matches!(n, LabelNoise::Clean | LabelNoise::Conservative(0.0));
                let dpo = subject(
                    "dpo",
                    if clean { laws } else { not_monotone(laws) },
                    of(dpo.init()),
                    move |_, row| {
                        let (w, l) = r(row);
                        noise(n, beta * (w - l))
                    },
                    move |row| (beta * r(row).0, beta * r(row).1),
                );
                all.push(dpo.with_exponent(of_g));
            }
            let ipo = IpoLossConfig::new()
                .with_tau(beta)
                .with_divergence(d)
                .with_normalization(normalization);
            let ipo = subject(
                "ipo",
                at(not_monotone(laws), 0.25 / beta.powi(2)),
                of(ipo.init()),
                move |_, row| {
                    let (w, l) = r(row);
                    (w - l - 0.5 / beta).powi(2)
                },
                move |row| (beta * r(row).0, beta * r(row).1),
            );
            all.push(ipo.with_exponent(of_g));
            let rewards = move |row: Row| (beta * r(row).0, beta * r(row).1);
            let h = move |row: Row| beta * (r(row).0 - r(row).1);
            let hinge = HingeLossConfig::new()
                .with_beta(beta)
                .with_divergence(d)
                .with_normalization(normalization);
            let hinge = subject(
                "hinge",
                at(laws, 1.0),
                of(hinge.init()),
                move |_, row| relu(1.0 - h(row)),
                rewards,
            );
            all.push(hinge.with_exponent(of_g));
            if normalization == Normalization::Mean {
                continue;
            }
            for t in [0.05, 1.0, 3.0] {
                let discopop = DiscopopLossConfig::new()
                    .with_beta(beta)
                    .with_divergence(d)
                    .with_temperature(t);
                let discopop = subject(
                    "discopop",
                    at(not_monotone(laws), 0.5 * LN_2 + 0.5),
                    of(discopop.init()),
                    move |_, row| {
                        // σ(h/t)·e^(−h) in the logarithm: its factors are 0 and ∞ for large −h.
                        let h = h(row);
                        -sigmoid(-h / t) * ln_sigmoid(h) + (ln_sigmoid(h / t) - h).exp()
                    },
                    rewards,
                );
                let own = move |row: Row| ln_sigmoid(h(row) / t) - h(row);
                all.push(discopop.with_exponent(move |row| own(row).max(of_g(row))));
            }
            let exo = ExoPairLossConfig::new()
                .with_beta(beta)
                .with_divergence(d)
                .with_label_smoothing(0.1);
            let exo = subject(
                "exo",
                at(
                    not_monotone(laws),
                    -LN_2 - 0.5 * (0.9_f64.ln() + 0.1_f64.ln()),
                ),
                of(exo.init()),
                move |_, row| {
                    let h = h(row);
                    sigmoid(h) * (ln_sigmoid(h) - 0.9_f64.ln())
                        + sigmoid(-h) * (ln_sigmoid(-h) - 0.1_f64.ln())
                },
                rewards,
            );
            all.push(exo.with_exponent(of_g));
        }
    }
    all
}

fn against_reference(beta: f64) -> Vec<PairSubject> {
    let plain = move |row: Row| (beta * row.rho_w(), beta * row.rho_l());
    let h = move |row: Row| beta * row.delta();
    let mut all = Vec::new();
    for (link, at_zero) in [
        (Link::Exponential, 1.0),
        (Link::SquaredHinge, 1.0),
        (Link::Savage, 0.25),
    ] {
        let gpo = GpoLossConfig::new().with_beta(beta).with_link(link).init();
        let f = move |h: f64| match link {
            Link::Exponential => (-h).exp(),
            Link::SquaredHinge => relu(1.0 - h).powi(2),
            Link::Savage => sigmoid(-h).powi(2),
            other => panic!("no formula of {other:?}"),
        };
        let loss = move |_, row| f(h(row));
        let gpo = subject("gpo", at(OF_DELTA, at_zero), of(gpo), loss, plain);
        all.push(match link {
            Link::Exponential => gpo.with_exponent(move |row| -h(row)),
            _ => gpo,
        });
    }
    let mut add = |name,
                   laws,
                   forward: Box<dyn Fn(ReferencedPair) -> PairOutput>,
                   loss: Box<dyn Fn(Row) -> f64>| {
        all.push(subject(name, laws, forward, move |_, row| loss(row), plain));
    };
    add(
        "nca",
        at(not_monotone(OF_RATIOS), 2.0 * LN_2),
        Box::new(of(NcaLossConfig::new().with_beta(beta).init())),
        Box::new(move |row| {
            let (w, l) = plain(row);
            -ln_sigmoid(w) - 0.5 * ln_sigmoid(-w) - 0.5 * ln_sigmoid(-l)
        }),
    );
    let bco = BcoLossConfig::new().with_beta(beta);
    add(
        "bco",
        at(OF_RATIOS, 2.0 * LN_2),
        Box::new(of(bco.init())),
        Box::new(move |row| -ln_sigmoid(plain(row).0) - ln_sigmoid(-plain(row).1)),
    );
    add(
        "sppo",
        at(not_monotone(OF_RATIOS), 0.5 / beta.powi(2)),
        Box::new(of(SppoLossConfig::new().with_beta(beta).init())),
        Box::new(move |row| {
            (row.rho_w() - 0.5 / beta).powi(2) + (row.rho_l() + 0.5 / beta).powi(2)
        }),
    );
    add(
        "apo zero",
        at(OF_RATIOS, 1.0),
        Box::new(of(ApoZeroLossConfig::new().with_beta(beta).init())),
        Box::new(move |row| 1.0 - sigmoid(plain(row).0) + sigmoid(plain(row).1)),
    );
    add(
        "apo down",
        at(not_monotone(OF_RATIOS), 1.0),
        Box::new(of(ApoDownLossConfig::new().with_beta(beta).init())),
        Box::new(move |row| sigmoid(plain(row).0) + 1.0 - sigmoid(h(row))),
    );
    for penalty in [0.0, 5.0, 50.0] {
        add(
            "dpop",
            OF_RATIOS,
            Box::new(of(DpopLossConfig::new()
                .with_beta(beta)
                .with_penalty(penalty)
                .init())),
            Box::new(move |row| -ln_sigmoid(beta * (row.delta() - penalty * relu(-row.rho_w())))),
        );
    }
    add(
        "r-dpo",
        Laws {
            at_reference: None,
            ..OF_DELTA
        },
        Box::new(of(RdpoLossConfig::new()
            .with_beta(beta)
            .with_length_cost(0.03)
            .init())),
        Box::new(move |row| -ln_sigmoid(h(row) + 0.03 * (row.len_w as f64 - row.len_l as f64))),
    );
    add(
        "cal-dpo",
        at(not_monotone(OF_RATIOS), LN_2 + 0.7 * 0.5 / beta.powi(2)),
        Box::new(of(CalDpoLossConfig::new()
            .with_beta(beta)
            .with_calibration_weight(0.7)
            .init())),
        Box::new(move |row| {
            let target = 1.0 / (2.0 * beta);
            let calibration = (row.rho_w() - target).powi(2) + (row.rho_l() + target).powi(2);
            -ln_sigmoid(row.delta()) + 0.7 * calibration
        }),
    );
    add(
        "dpo-shift",
        OF_RATIOS,
        Box::new(of(DpoShiftLossConfig::new()
            .with_beta(beta)
            .with_rejected_share(0.6)
            .init())),
        Box::new(move |row| -ln_sigmoid(beta * (row.rho_w() - 0.6 * row.rho_l()))),
    );
    let mixture = Mixture::new(0.8, DpoLossConfig::new().with_beta(beta).init()).unwrap();
    add(
        "mixture",
        at(OF_RATIOS, 0.8 * LN_2 + 0.4 * LN_2),
        Box::new(of(mixture.and(0.2, bco.init()).unwrap())),
        Box::new(move |row| {
            let bco = -ln_sigmoid(plain(row).0) - ln_sigmoid(-plain(row).1);
            -0.8 * ln_sigmoid(h(row)) + 0.2 * bco
        }),
    );
    add(
        "dpo + sft",
        Laws {
            ratio_only: false,
            prompt_shift: false,
            at_reference: None,
            ..OF_DELTA
        },
        Box::new(of(SftTerm::new(
            DpoLossConfig::new().with_beta(beta).init(),
            0.7,
        )
        .unwrap())),
        Box::new(move |row| -ln_sigmoid(h(row)) - 0.7 * row.mean_w()),
    );
    all.push(subject(
        "h-dpo",
        Laws {
            at_reference: None,
            ratio_only: false,
            ..OF_DELTA
        },
        of(HdpoLossConfig::new(0.9).with_beta(beta).init()),
        move |_, row| -ln_sigmoid(beta * (0.9 * (row.w - row.l) - (row.ref_w - row.ref_l))),
        move |row| {
            (
                beta * (0.9 * row.w - row.ref_w),
                beta * (0.9 * row.l - row.ref_l),
            )
        },
    ));
    for bound in [None, Some(0.8)] {
        let chi = |rho: f64| rho.exp() + rho;
        let chipo = subject(
            "chipo",
            OF_RATIOS,
            of(ChipoLossConfig::new()
                .with_beta(beta)
                .with_reward_bound(bound)
                .init()),
            move |_, row| {
                let h = beta * (chi(row.rho_w()) - chi(row.rho_l()));
                -ln_sigmoid(bound.map_or(h, |r| h.clamp(-2.0 * r, 2.0 * r)))
            },
            move |row| {
                (
                    beta * (chi(row.rho_w()) - 1.0),
                    beta * (chi(row.rho_l()) - 1.0),
                )
            },
        );
        all.push(chipo.with_exponent(|row| row.rho_w().max(row.rho_l())));
    }
    all
}

fn with_columns(beta: f64) -> Vec<PairSubject> {
    let plain = move |row: Row| (beta * row.rho_w(), beta * row.rho_l());
    let h = move |row: Row| beta * row.delta();
    let anywhere = |laws| Laws {
        at_reference: None,
        ..laws
    };
    let mut all = Vec::new();
    let mut add = |name,
                   laws,
                   forward: Box<dyn Fn(ReferencedPair) -> PairOutput>,
                   loss: Box<dyn Fn(usize, Row) -> f64>| {
        all.push(subject(name, anywhere(laws), forward, loss, plain));
    };
    for n in NOISES {
        let dpo = DpoLossConfig::new()
            .with_beta(beta)
            .with_label_noise(n)
            .init();
        let (odpo, soft) = (dpo.clone(), dpo);
        add(
            "odpo",
            not_monotone(OF_DELTA),
            Box::new(move |b| {
                let margin = column(&b, margin);
                odpo.forward(WithMargin::new(b, margin).unwrap())
            }),
            Box::new(move |i, row| noise(n, h(row) - margin(i))),
        );
        add(
            "soft-label dpo",
            not_monotone(OF_DELTA),
            Box::new(move |b| {
                let p = column(&b, probability);
                soft.forward(WithPreference::new(b, p).unwrap())
            }),
            Box::new(move |i, row| {
                let p = probability(i);
                p * noise(n, h(row)) + (1.0 - p) * noise(n, -h(row))
            }),
        );
    }
    let sppo = SppoLossConfig::new().with_beta(beta).init();
    add(
        "sppo",
        not_monotone(OF_RATIOS),
        Box::new(move |b| {
            let p = column(&b, probability);
            sppo.forward(WithPreference::new(b, p).unwrap())
        }),
        Box::new(move |i, row| {
            let edge = (probability(i) - 0.5) / beta;
            (row.rho_w() - edge).powi(2) + (row.rho_l() + edge).powi(2)
        }),
    );
    let scored = |b: ReferencedPair| {
        let scores = Pair::new(column(&b, score_w), column(&b, score_l)).unwrap();
        WithScores::new(b, scores).unwrap()
    };
    for distance in [
        GapDistance::BackwardKl,
        GapDistance::ForwardKl,
        GapDistance::Squared,
    ] {
        let rpo = RpoLossConfig::new()
            .with_beta(beta)
            .with_score_scale(1.3)
            .with_distance(distance)
            .init();
        add(
            "rpo",
            not_monotone(OF_DELTA),
            Box::new(move |b| rpo.forward(scored(b))),
            Box::new(move |i, row| {
                let (d, h) = (1.3 * (score_w(i) - score_l(i)), h(row));
                match distance {
                    GapDistance::BackwardKl => bernoulli_kl(d, h),
                    GapDistance::ForwardKl => bernoulli_kl(h, d),
                    GapDistance::Squared => (h - d).powi(2),
                    other => panic!("no formula of {other:?}"),
                }
            }),
        );
    }
    let with_ties = |b: ReferencedPair| {
        let tied: Vec<bool> = (0..b.len()).map(tied).collect();
        WithTies::new(b, bools(&tied)).unwrap()
    };
    let rao_kupper = RaoKupperLossConfig::new()
        .with_beta(beta)
        .with_tie_factor(2.5)
        .init();
    add(
        "rao-kupper",
        not_monotone(OF_DELTA),
        Box::new(move |b| rao_kupper.forward(with_ties(b))),
        Box::new(move |i, row| tie_nll(TieModel::RaoKupper(2.5), h(row), tied(i))),
    );
    let davidson = DavidsonLossConfig::new()
        .with_beta(beta)
        .with_tie_factor(0.7)
        .init();
    add(
        "davidson",
        not_monotone(OF_DELTA),
        Box::new(move |b| davidson.forward(with_ties(b))),
        Box::new(move |i, row| tie_nll(TieModel::Davidson(0.7), h(row), tied(i))),
    );
    let tdpo = TdpoLossConfig::new()
        .with_beta(beta)
        .with_kl_weight(0.4)
        .init();
    add(
        "tdpo",
        OF_DELTA,
        Box::new(move |b| {
            let kl = Pair::new(column(&b, kl_w), column(&b, kl_l)).unwrap();
            tdpo.forward(WithSequenceKl::new(b, kl).unwrap())
        }),
        Box::new(move |i, row| -ln_sigmoid(beta * (row.delta() - 0.4 * (kl_l(i) - kl_w(i))))),
    );
    let bco = BcoLossConfig::new().with_beta(beta).init();
    add(
        "bco with δ",
        OF_RATIOS,
        Box::new(move |b| {
            let shift = constants(&b, &[SHIFT]);
            bco.forward(WithShift::new(b, shift).unwrap())
        }),
        Box::new(move |_, row| {
            let (w, l) = plain(row);
            -ln_sigmoid(w - SHIFT) - ln_sigmoid(-(l - SHIFT))
        }),
    );
    let weighted = Weighted(DpoLossConfig::new().with_beta(beta).init());
    add(
        "weighted",
        OF_DELTA,
        Box::new(move |b| {
            let weights = column(&b, probability);
            weighted.forward(WithWeights::new(b, weights).unwrap())
        }),
        Box::new(move |i, row| -probability(i) * ln_sigmoid(h(row))),
    );
    let rebel = RebelLossConfig::new().with_score_scale(1.3).init();
    all.push(subject(
        "rebel",
        anywhere(not_monotone(OF_DELTA)),
        move |b| rebel.forward(scored(b)),
        |i, row| (row.delta() - 1.3 * (score_w(i) - score_l(i))).powi(2),
        |row| (row.rho_w(), row.rho_l()),
    ));
    let rebel = RebelLossConfig::new().with_score_scale(1.3);
    let rebel = rebel.with_unit(RegressionUnit::Score).init();
    all.push(subject(
        "rebel in units of the score",
        anywhere(not_monotone(OF_DELTA)),
        move |b| rebel.forward(scored(b)),
        |i, row| (row.delta() / 1.3 - (score_w(i) - score_l(i))).powi(2),
        |row| (row.rho_w(), row.rho_l()),
    ));
    all
}

/// Objectives whose losses depend on the whole batch.
fn of_batches(beta: f64) -> Vec<PairSubject> {
    let plain = move |row: Row| (beta * row.rho_w(), beta * row.rho_l());
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
            let losses = move |rows: &[Row], _: &[Row]| {
                let sort = |f: &dyn Fn(&Row) -> f64| sorted(rows.iter().map(f).collect());
                let (a, b) = if paired {
                    (sort(&|r| r.w - r.l), sort(&|r| r.ref_w - r.ref_l))
                } else {
                    (sort(&|r| r.rho_w()), sort(&|r| r.rho_l()))
                };
                a.iter()
                    .zip(b)
                    .map(|(a, b)| noise(n, beta * (a - b)))
                    .collect()
            };
            all.push(PairSubject {
                name: "aot",
                forward: Box::new(of(aot.init())),
                losses: Box::new(losses),
                rewards: Box::new(plain),
                exponent: None,
                // At the reference the sides are sorted apart: only the paired form is DPO there.
                laws: Laws {
                    ratio_only: !paired,
                    at_reference: paired.then_some(LN_2),
                    ..laws
                },
            });
        }
    }
    let beta_dpo = BetaDpoLossConfig::new().with_beta(beta).init();
    let losses = move |rows: &[Row], frozen: &[Row]| {
        let deltas = frozen.iter().map(|row| row.delta());
        let mean = deltas.sum::<f64>() / frozen.len() as f64;
        let beta = (beta * (1.0 + 0.6 * (mean - MEAN_MARGIN))).max(1e-3);
        rows.iter()
            .map(|row| -ln_sigmoid(beta * row.delta()))
            .collect()
    };
    all.push(PairSubject {
        name: "beta-dpo",
        forward: Box::new(move |b| {
            let mean_margin = constants(&b, &[MEAN_MARGIN]);
            beta_dpo.forward(WithMeanMargin::new(b, mean_margin).unwrap())
        }),
        losses: Box::new(losses),
        rewards: Box::new(plain),
        exponent: None,
        laws: Laws {
            prompt_shift: true,
            at_reference: Some(LN_2),
            ..laws
        },
    });
    all
}

fn reference_free(beta: f64) -> Vec<PairSubject> {
    let means = |row: Row| (row.mean_w(), row.mean_l());
    let scaled = move |c: f64| move |row: Row| (c * row.mean_w(), c * row.mean_l());
    let mut all = vec![
        subject(
            "orpo",
            OF_POLICY,
            of_policy(OrpoLossConfig::new().with_odds_ratio_weight(beta).init()),
            move |_, row| {
                let (w, l) = means(row);
                -w - beta * ln_sigmoid(odds(w) - odds(l))
            },
            scaled(beta),
        ),
        subject(
            "slic-hf",
            Laws {
                prompt_shift: false,
                ..OF_POLICY
            },
            of_policy(
                SlicHfLossConfig::new()
                    .with_target_margin(2.0)
                    .with_sft_weight(beta)
                    .init(),
            ),
            move |_, row| relu(2.0 - row.w + row.l) - beta * row.w,
            |row| (row.w, row.l),
        ),
        subject(
            "simper",
            OF_POLICY,
            of_policy(SimperLossConfig::new().init()),
            move |_, row| -row.mean_w().exp() + row.mean_l().exp(),
            |row| (row.mean_w().exp(), row.mean_l().exp()),
        ),
        subject(
            "asft",
            OF_POLICY,
            of_policy(AsftLossConfig::new().with_alignment_weight(beta).init()),
            move |_, row| {
                let (w, l) = means(row);
                -w + beta * (-ln_sigmoid(odds(w)) - ln_sigmoid(-odds(l)))
            },
            scaled(beta),
        ),
    ];
    for n in NOISES {
        let policy = not_monotone(OF_POLICY);
        all.push(subject(
            "simpo",
            policy,
            of_policy(
                SimpoLossConfig::new()
                    .with_beta(beta)
                    .with_target_margin(0.4)
                    .with_label_noise(n)
                    .init(),
            ),
            move |_, row| noise(n, beta * (row.mean_w() - row.mean_l()) - 0.4),
            scaled(beta),
        ));
        all.push(subject(
            "cpo",
            policy,
            of_policy(
                CpoLossConfig::new()
                    .with_beta(beta)
                    .with_sft_weight(0.6)
                    .with_label_noise(n)
                    .init(),
            ),
            move |_, row| noise(n, beta * (row.w - row.l)) - 0.6 * row.mean_w(),
            move |row| (beta * row.w, beta * row.l),
        ));
        for alpha in [0.25, -0.5, 0.0, 1e-4] {
            let r = move |mean: f64| match alpha {
                0.0 => mean,
                alpha => -(-alpha * mean).exp_m1() / alpha,
            };
            let alphapo = subject(
                "alphapo",
                policy,
                of_policy(
                    AlphaPoLossConfig::new()
                        .with_beta(beta)
                        .with_target_margin(0.4)
                        .with_alpha(alpha)
                        .with_label_noise(n)
                        .init(),
                ),
                move |_, row| noise(n, beta * (r(row.mean_w()) - r(row.mean_l())) - 0.4),
                move |row| (beta * r(row.mean_w()), beta * r(row.mean_l())),
            );
            all.push(
                alphapo
                    .with_exponent(move |row| (-alpha * row.mean_w()).max(-alpha * row.mean_l())),
            );
        }
    }
    all
}

/// The gold completion of each example: ℓ and tokens.
fn gold(i: usize) -> (f64, usize) {
    (-1.5 - 0.75 * i as f64, 1 + i % 4)
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
            .with_label_noise(n)
            .init();
        let r = move |row: Row| match normalization {
            Normalization::Mean => (row.mean_w(), row.mean_l()),
            _ => (row.w, row.l),
        };
        all.push(subject(
            "tpo",
            Laws {
                prompt_shift: normalization == Normalization::Sum,
                monotone: n == LabelNoise::Clean,
                ..OF_POLICY
            },
            move |b: ReferencedPair| {
                let (sums, lengths): (Vec<f64>, Vec<usize>) = (0..b.len()).map(gold).unzip();
                let gold = sequence(constants(&b, &sums), &lengths);
                tpo.forward(WithNll::new(b.policy(), gold).unwrap())
            },
            move |i, row| {
                let (w, l) = r(row);
                let (sum, length) = gold(i);
                noise(n, beta * (w - l) - 0.4) - 0.6 * sum / length as f64
            },
            move |row| (beta * r(row).0, beta * r(row).1),
        ));
    }
    all
}

/// Objectives of reward models: ℓ of the policy stands for what the model says.
fn of_rewards(weight: f64) -> Vec<PairSubject> {
    let rewards = |row: Row| (row.w, row.l);
    let says =
        |b: &ReferencedPair| RewardPair::new(b.chosen.policy().sum(), b.rejected.policy().sum());
    let mut all = Vec::new();
    for centering in [0.0, weight] {
        let laws = match centering {
            0.0 => Laws {
                prompt_shift: true,
                ..not_monotone(OF_POLICY)
            },
            _ => not_monotone(OF_POLICY),
        };
        let mut add = |name,
                       laws,
                       forward: Box<dyn Fn(ReferencedPair, RewardPair) -> PairOutput>,
                       loss: Box<dyn Fn(usize, f64) -> f64>| {
            let forward = move |b: ReferencedPair| {
                let pair = says(&b).unwrap();
                forward(b, pair)
            };
            let loss = move |i, row: Row| {
                let term = if centering == 0.0 {
                    0.0
                } else {
                    centering * (row.w + row.l).powi(2)
                };
                loss(i, row.w - row.l) + term
            };
            all.push(subject(name, laws, forward, loss, rewards));
        };
        for n in NOISES {
            let bradley_terry = BradleyTerryLossConfig::new()
                .with_centering_weight(centering)
                .with_label_noise(n)
                .init();
            let clean = matches!(n, LabelNoise::Clean | LabelNoise::Conservative(0.0));
            let plain = Laws {
                monotone: clean && centering == 0.0,
                ..laws
            };
            let (with_margin, graded) = (bradley_terry.clone(), bradley_terry.clone());
            add(
                "bradley-terry",
                plain,
                Box::new(move |_, pair| bradley_terry.forward(pair)),
                Box::new(move |_, h| noise(n, h)),
            );
            add(
                "bradley-terry with margins",
                plain,
                Box::new(move |b, pair| {
                    let margin = column(&b, margin);
                    with_margin.forward(WithMargin::new(pair, margin).unwrap())
                }),
                Box::new(move |i, h| noise(n, h - margin(i))),
            );
            add(
                "bradley-terry with soft labels",
                laws,
                Box::new(move |b, pair| {
                    let p = column(&b, probability);
                    graded.forward(WithPreference::new(pair, p).unwrap())
                }),
                Box::new(move |i, h| {
                    probability(i) * noise(n, h) + (1.0 - probability(i)) * noise(n, -h)
                }),
            );
        }
        for model in [TieModel::RaoKupper(2.5), TieModel::Davidson(0.7)] {
            let ties = BradleyTerryTiesLossConfig::new()
                .with_centering_weight(centering)
                .with_tie_model(model)
                .init();
            add(
                "bradley-terry with ties",
                laws,
                Box::new(move |b, pair| {
                    let tied: Vec<bool> = (0..b.len()).map(tied).collect();
                    ties.forward(WithTies::new(pair, bools(&tied)).unwrap())
                }),
                Box::new(move |i, h| tie_nll(model, h, tied(i))),
            );
        }
    }
    all
}

/// −ln P(outcome) at margin h.
fn tie_nll(model: TieModel, h: f64, tied: bool) -> f64 {
    let (win, tie) = match model {
        TieModel::RaoKupper(nu) => {
            let (win, loss) = (ln_sigmoid(h - nu.ln()), ln_sigmoid(-h - nu.ln()));
            (win, (nu * nu - 1.0).ln() + win + loss)
        }
        TieModel::Davidson(nu) => {
            let win = -logsumexp(&[0.0, -h, (2.0 * nu).ln() - h / 2.0]);
            (win, (2.0 * nu).ln() - h / 2.0 + win)
        }
        other => panic!("no formula of {other:?}"),
    };
    -if tied { tie } else { win }
}

/// An objective over lists.
pub struct ListSubject {
    pub name: &'static str,
    pub forward: Box<dyn Fn(Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>>>,
    /// The loss of one list of present candidates; the second argument carries no gradient.
    pub loss: Box<dyn Fn(&List, &List) -> f64>,
    pub rewards: Box<dyn Fn(&List) -> Vec<f64>>,
}

fn list_subject(
    name: &'static str,
    forward: impl Fn(Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>> + 'static,
    loss: impl Fn(&List, &List) -> f64 + 'static,
    rewards: impl Fn(&List) -> Vec<f64> + 'static,
) -> ListSubject {
    ListSubject {
        name,
        forward: Box::new(forward),
        loss: Box::new(loss),
        rewards: Box::new(rewards),
    }
}

fn of_ranked(
    objective: impl Objective<Ranked<RelativeLogProbs<2>>> + 'static,
) -> impl Fn(Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>> {
    move |batch| objective.forward(batch)
}

fn of_ranked_policy(
    objective: impl Objective<Ranked<SequenceLogProbs<2>>> + 'static,
) -> impl Fn(Ranked<RelativeLogProbs<2>>) -> LossOutput<Tensor<2>> {
    move |batch| {
        let policy = batch.candidates().policy().clone();
        objective.forward(Ranked::new(policy, batch.scores(), batch.present()).unwrap())
    }
}

/// Every objective over lists.
pub fn lists(beta: f64) -> Vec<ListSubject> {
    let rewards = move |list: &List| list.rewards(beta);
    let mut all = vec![
        list_subject(
            "pro",
            of_ranked_policy(ProLossConfig::new().with_sft_weight(beta).init()),
            move |list, _| {
                let (q, s) = (list.per_token(1.0), &list.scores);
                let mut loss = beta * list.best_nll();
                for k in 0..list.len() {
                    let worse = list.worse(k);
                    let t = worse.iter().map(|&i| s[k] - s[i]).fold(0.0, f64::max);
                    let others = worse.iter().map(|&i| q[i] * (s[k] - s[i]));
                    let all: Vec<f64> = others.chain([q[k] * t]).collect();
                    loss += logsumexp(&all) - q[k] * t;
                }
                loss
            },
            |list| list.per_token(1.0),
        ),
        list_subject(
            "plackett-luce",
            of_ranked(PlackettLuceLossConfig::new().with_beta(beta).init()),
            move |list, _| {
                let q = list.rewards(beta);
                (0..list.len()).map(|k| list.lead_nll(&q, k)).sum()
            },
            rewards,
        ),
        list_subject(
            "s-dpo",
            of_ranked(SdpoLossConfig::new().with_beta(beta).init()),
            move |list, _| {
                let q = list.rewards(beta);
                let best = list.best();
                let losses = best.iter().map(|&w| list.lead_nll(&q, w));
                losses.sum::<f64>() / best.len() as f64
            },
            rewards,
        ),
        list_subject(
            "lipo",
            of_ranked(LipoLossConfig::new().with_beta(beta).init()),
            move |list, frozen| {
                let (q, s) = (list.rewards(beta), &list.scores);
                let ranks = ranks(&frozen.rewards(beta));
                // Over all pairs of ranks that the two may have.
                let discount = |i: usize, j: usize| {
                    let (mut sum, mut count) = (0.0, 0.0);
                    for a in ranks[i].clone() {
                        for b in ranks[j].clone().filter(|&b| b != a) {
                            let d = |rank: usize| 1.0 / ((rank + 1) as f64).ln();
                            sum += (d(a) - d(b)).abs();
                            count += 1.0;
                        }
                    }
                    sum / count
                };
                let mut loss = 0.0;
                for i in 0..list.len() {
                    for j in 0..list.len() {
                        if s[i] > s[j] {
                            let gain = |s: f64| s.exp2();
                            let gain = (gain(s[i]) - gain(s[j])).abs();
                            loss -= gain * discount(i, j) * ln_sigmoid(q[i] - q[j]);
                        }
                    }
                }
                loss
            },
            rewards,
        ),
    ];
    for kappa in [0.0, 0.6, 1.0] {
        let rrhf = RrhfLossConfig::new()
            .with_length_penalty(kappa)
            .with_sft_weight(beta);
        all.push(list_subject(
            "rrhf",
            of_ranked_policy(rrhf.init()),
            move |list, _| {
                let (q, s) = (list.per_token(kappa), &list.scores);
                let mut loss = beta * list.best_nll();
                for i in 0..list.len() {
                    for j in 0..list.len() {
                        if s[i] < s[j] {
                            loss += relu(q[i] - q[j]);
                        }
                    }
                }
                loss
            },
            move |list| list.per_token(kappa),
        ));
    }
    for centering in [0.0, beta] {
        let ranking = RewardRankingLossConfig::new().with_centering_weight(centering);
        let ranking = ranking.init();
        all.push(list_subject(
            "plackett-luce of rewards",
            move |batch| {
                let says = batch.candidates().policy().sum();
                ranking.forward(Ranked::new(says, batch.scores(), batch.present()).unwrap())
            },
            move |list, _| {
                let r = &list.sums;
                let loss: f64 = (0..list.len()).map(|k| list.lead_nll(r, k)).sum();
                if centering == 0.0 {
                    return loss;
                }
                let mean = r.iter().sum::<f64>() / r.len() as f64;
                loss + centering * (2.0 * mean).powi(2)
            },
            |list| list.sums.clone(),
        ));
    }
    let p = |list: &List, t: f64| softmax(&list.scores.iter().map(|s| s / t).collect::<Vec<_>>());
    for t in [0.5, 1.0] {
        let nca = NcaListLossConfig::new()
            .with_beta(beta)
            .with_score_temperature(t);
        all.push(list_subject(
            "nca (lists)",
            of_ranked(nca.init()),
            move |list, _| {
                let share = 1.0 / list.len() as f64;
                let terms = list.rewards(beta).into_iter().zip(p(list, t));
                -terms
                    .map(|(q, p)| p * ln_sigmoid(q) + share * ln_sigmoid(-q))
                    .sum::<f64>()
            },
            rewards,
        ));
        let info = InfoNcaLossConfig::new()
            .with_beta(beta)
            .with_score_temperature(t);
        all.push(list_subject(
            "infonca",
            of_ranked(info.init()),
            move |list, _| {
                let q = log_softmax(&list.rewards(beta));
                -q.iter().zip(p(list, t)).map(|(q, p)| p * q).sum::<f64>()
            },
            rewards,
        ));
        let exo = ExoListLossConfig::new()
            .with_beta(beta)
            .with_score_temperature(t);
        all.push(list_subject(
            "exo (lists)",
            of_ranked(exo.init()),
            move |list, _| {
                let q = log_softmax(&list.rewards(beta));
                let p = log_softmax(&list.scores.iter().map(|s| s / t).collect::<Vec<_>>());
                q.iter().zip(p).map(|(q, p)| q.exp() * (q - p)).sum()
            },
            rewards,
        ));
    }
    all
}
