//! Configs: ranges, files, and what a typo says.

use burn::config::Config;
use burn::tensor::DType;
use burn_preference::config::{BuildError, ObjectiveConfig};
use burn_preference::needs::{ColumnKind, Examples, Values};
use burn_preference::{
    CpoLossConfig, Divergence, DpoLossConfig, HdpoLossConfig, IpoLossConfig, KtoLossConfig,
    LabelNoise, NllNormalization, Normalization, Objective, OrpoLossConfig, PolicyPair,
    ReferencedPair, RrhfLossConfig, SimnpoLossConfig, SimpoLossConfig, SppoLossConfig,
    TpoLossConfig, WithMargin,
};
use serde::de::DeserializeOwned;

fn parse<C: DeserializeOwned>(json: &str) -> Result<C, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[test]
fn a_config_round_trips() {
    let config = DpoLossConfig::new()
        .with_beta(0.3)
        .with_label_noise(LabelNoise::Robust(0.1))
        .with_divergence(Divergence::Alpha(0.5))
        .with_normalization(Normalization::Mean);
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(
        json,
        r#"{"beta":0.3,"label_noise":{"robust":0.1},"divergence":{"alpha":0.5},"normalization":"mean"}"#
    );
    assert_eq!(parse(&json), Ok(config.clone()));

    let path = std::env::temp_dir().join(format!("burn-preference-{}.json", std::process::id()));
    config.save(&path).unwrap();
    assert_eq!(DpoLossConfig::load(&path).unwrap(), config);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn missing_keys_take_their_defaults() {
    let expected = DpoLossConfig::new().with_beta(0.5);
    assert_eq!(parse(r#"{"beta": 0.5}"#), Ok(expected));
    assert_eq!(parse("{}"), Ok(IpoLossConfig::new()));
    let token = OrpoLossConfig::new().with_nll_normalization(NllNormalization::Token);
    assert_eq!(parse(r#"{"nll_normalization": "token"}"#), Ok(token));
}

#[test]
fn a_typo_names_the_key() {
    let error = parse::<DpoLossConfig>(r#"{"betta": 0.5}"#).unwrap_err();
    assert!(error.contains("unknown field `betta`"), "{error}");
    assert!(error.contains("`beta`"), "{error}");
    let error = parse::<KtoLossConfig>(r#"{"desirable": 1}"#).unwrap_err();
    assert!(error.contains("unknown field `desirable`"), "{error}");
    let error = parse::<DpoLossConfig>(r#"{"divergence": "kl"}"#).unwrap_err();
    assert!(error.contains("unknown variant `kl`"), "{error}");
}

#[test]
fn values_outside_their_range_are_named() {
    let dpo = DpoLossConfig::new();
    for beta in [0.0, -0.1, f64::NAN, f64::INFINITY] {
        let error = dpo.clone().with_beta(beta).try_init().unwrap_err();
        assert_eq!(
            (error.name(), error.allowed()),
            ("beta", "a finite number > 0, in f32")
        );
        assert_eq!(error.value().to_bits(), beta.to_bits());
    }
    let noise = |n| {
        dpo.clone()
            .with_label_noise(n)
            .try_init()
            .unwrap_err()
            .to_string()
    };
    for rate in [-0.01, 0.5, 1.0] {
        assert_eq!(
            noise(LabelNoise::Conservative(rate)),
            format!("`label_noise.conservative` is {rate}, but must be in [0, 0.5)")
        );
        assert!(noise(LabelNoise::Robust(rate)).starts_with("`label_noise.robust`"));
    }
    let alpha = dpo
        .clone()
        .with_divergence(Divergence::Alpha(0.0))
        .try_init()
        .unwrap_err();
    assert_eq!(alpha.name(), "divergence.alpha");
    let name = |e: burn_preference::InvalidHyperparameter| e.name();
    assert_eq!(
        name(IpoLossConfig::new().with_tau(0.0).try_init().unwrap_err()),
        "tau"
    );
    let ipo = IpoLossConfig::new().with_divergence(Divergence::Alpha(-1.0));
    assert_eq!(name(ipo.try_init().unwrap_err()), "divergence.alpha");
    let kto = KtoLossConfig::new();
    assert_eq!(
        name(kto.clone().with_beta(0.0).try_init().unwrap_err()),
        "beta"
    );
    let (d, u) = (
        kto.clone().with_desirable_weight(-1.0),
        kto.with_undesirable_weight(f64::NAN),
    );
    assert_eq!(name(d.try_init().unwrap_err()), "desirable_weight");
    assert_eq!(name(u.try_init().unwrap_err()), "undesirable_weight");
    let orpo = OrpoLossConfig::new().with_odds_ratio_weight(-0.1);
    assert_eq!(name(orpo.try_init().unwrap_err()), "odds_ratio_weight");
    let rrhf = RrhfLossConfig::new();
    let (k, w) = (
        rrhf.clone().with_length_penalty(-1.0),
        rrhf.with_sft_weight(-1.0),
    );
    assert_eq!(name(k.try_init().unwrap_err()), "length_penalty");
    assert_eq!(name(w.try_init().unwrap_err()), "sft_weight");
}

#[test]
#[should_panic(expected = "`beta` is 0, but must be a finite number > 0, in f32")]
fn init_panics_with_the_same_words() {
    let _ = DpoLossConfig::new().with_beta(0.0).init();
}

#[test]
fn every_objective_of_a_file_round_trips() {
    let of_objectives = ["mixture", "with_sft"];
    for name in ObjectiveConfig::NAMES {
        if of_objectives.contains(name) {
            continue;
        }
        let required = match *name {
            "hdpo" => r#", "entropy_weight": 0.9"#,
            _ => "",
        };
        let json = format!(r#"{{"loss": "{name}"{required}}}"#);
        let config: ObjectiveConfig = parse(&json).unwrap();
        assert_eq!(config.name(), *name);
        assert_eq!(config.check(), Ok(()), "{name}");
        let json = serde_json::to_string(&config).unwrap();
        assert!(json.starts_with(&format!(r#"{{"loss":"{name}""#)), "{json}");
        assert_eq!(parse::<ObjectiveConfig>(&json).unwrap(), config, "{json}");
        let typo = format!(r#"{{"loss": "{name}", "betta": 1}}"#);
        let error = parse::<ObjectiveConfig>(&typo).unwrap_err();
        assert!(error.contains("unknown field `betta`"), "{name}: {error}");
    }
    let error = parse::<ObjectiveConfig>(r#"{"beta": 0.1}"#).unwrap_err();
    assert!(error.contains("missing field `loss`"), "{error}");
    let error = parse::<ObjectiveConfig>(r#"{"loss": "dop"}"#).unwrap_err();
    assert!(
        error.contains("unknown variant `dop`") && error.contains("`dpo`"),
        "{error}"
    );
    let error = parse::<ObjectiveConfig>(r#"{"loss": "with_sft", "weight": 1}"#).unwrap_err();
    assert!(error.contains("missing field `objective`"), "{error}");
}

#[test]
fn a_file_builds_what_it_says() {
    let pairs = crate::support::Pairs {
        chosen: vec![-4.0, -9.0],
        rejected: vec![-7.0, -8.0],
        ref_chosen: vec![-5.0, -8.5],
        ref_rejected: vec![-6.0, -8.0],
        chosen_len: vec![3, 5],
        rejected_len: vec![4, 4],
    };
    let losses = |json: &str| {
        let config: ObjectiveConfig = parse(json).unwrap();
        if config.takes()[0].has_reference() {
            let objective = config.build::<ReferencedPair>().unwrap();
            pairs.run(&objective, DType::F64).losses
        } else {
            let objective = config.build::<PolicyPair>().unwrap();
            pairs.run_policy(&objective, DType::F64).losses
        }
    };
    let dpo = losses(r#"{"loss": "dpo", "beta": 0.2}"#);
    let simpo = losses(r#"{"loss": "simpo"}"#);
    let mixture = r#"{"loss": "mixture", "parts": [
        {"weight": 0.5, "objective": {"loss": "dpo", "beta": 0.2}},
        {"weight": 2, "objective": {"loss": "simpo"}}]}"#;
    let sft = format!(r#"{{"loss": "with_sft", "weight": 0.1, "objective": {mixture}}}"#);
    let whole = losses(&sft);
    for i in 0..2 {
        let nll = [4.0 / 3.0, 9.0 / 5.0][i];
        let expected = 0.5 * dpo[i] + 2.0 * simpo[i] + 0.1 * nll;
        assert!(crate::support::error(whole[i], expected) < 1e-14);
    }
    let config: ObjectiveConfig = parse(&sft).unwrap();
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(parse::<ObjectiveConfig>(&json), Ok(config));

    // Reference-free parts alone stay reference-free.
    let free = r#"{"loss": "mixture", "parts": [{"weight": 1, "objective": {"loss": "orpo"}}]}"#;
    let free: ObjectiveConfig = parse(free).unwrap();
    assert!(free.build::<PolicyPair>().is_ok());
    assert!(free.build::<ReferencedPair>().is_err());
}

/// Facts that a program asks before it reads data.
#[test]
fn needs_are_those_of_the_objective() {
    let takes = |json: &str| {
        let config: ObjectiveConfig = parse(json).unwrap();
        config.takes()
    };
    let words = |json: &str| {
        let words: Vec<String> = takes(json).iter().map(ToString::to_string).collect();
        words.join(" | ")
    };
    assert_eq!(
        words(r#"{"loss": "bco"}"#),
        "pairs, reference | pairs, reference, δ | unpaired completions, reference, δ"
    );
    assert_eq!(
        words(r#"{"loss": "kto"}"#),
        "unpaired completions, reference, z₀"
    );
    assert_eq!(words(r#"{"loss": "simnpo"}"#), "completions to unlearn");
    assert_eq!(
        words(r#"{"loss": "sft"}"#),
        "demonstrations | demonstrations, tokens of the step"
    );
    let whole = |json: &str| [0, 1].map(|i| takes(json)[i].whole_batch);
    assert_eq!(whole(r#"{"loss": "sft"}"#), [true, false]);
    let per_sequence = r#"{"loss": "sft", "normalization": "sequence"}"#;
    assert_eq!(whole(per_sequence), [false, false]);
    let orpo = r#"{"loss": "orpo", "nll_normalization": "token"}"#;
    assert_eq!(
        words(orpo),
        "pairs | pairs, sequences to imitate | pairs, tokens of the step | \
         pairs, sequences to imitate, tokens of the step"
    );
    let of_each = takes(orpo)
        .iter()
        .map(|n| n.whole_batch)
        .collect::<Vec<_>>();
    assert_eq!(of_each, [true, true, false, false]);
    let tpo = r#"{"loss": "tpo", "nll_normalization": "token"}"#;
    assert_eq!(
        words(tpo),
        "pairs, sequences to imitate | pairs, sequences to imitate, tokens of the step"
    );
    assert_eq!(whole(tpo), [true, false]);
    assert_eq!(words(r#"{"loss": "rrhf"}"#), "ranked lists");
    let reward = &takes(r#"{"loss": "bradley_terry_ties"}"#)[0];
    assert_eq!(
        (reward.examples, reward.values, reward.columns.as_slice()),
        (
            Examples::Pairs,
            Values::Rewards,
            [ColumnKind::Ties].as_slice()
        )
    );
    assert_eq!(reward.to_string(), "rewards of pairs, ties");

    // Those of objectives made of objectives combine.
    let mixture = |parts: &[&str]| {
        let part = |name| format!(r#"{{"weight": 1, "objective": {{"loss": {name}}}}}"#);
        let parts: Vec<String> = parts.iter().map(part).collect();
        format!(r#"{{"loss": "mixture", "parts": [{}]}}"#, parts.join(","))
    };
    let simpo_and_dpo = mixture(&[r#""simpo""#, r#""dpo""#]);
    assert_eq!(words(&simpo_and_dpo), "pairs, reference");
    assert_eq!(words(&mixture(&[r#""simpo""#, r#""orpo""#])), "pairs");
    let whole = |json: &str| takes(json)[0].whole_batch;
    assert!(!whole(&simpo_and_dpo));
    assert!(whole(&mixture(&[r#""dpo""#, r#""aot""#])));
    let token = r#""orpo", "nll_normalization": "token""#;
    assert!(whole(&mixture(&[r#""simpo""#, token])));
    let sft = |mean: &str| {
        format!(
            r#"{{"loss": "with_sft", "weight": 1, "normalization": "{mean}", "objective": {simpo_and_dpo}}}"#
        )
    };
    assert!(!whole(&sft("sequence")) && whole(&sft("token")));
    // The term takes the tokens of the step, its objective does not.
    assert_eq!(
        words(&sft("token")),
        "pairs, reference | pairs, reference, tokens of the step"
    );
    assert!(!takes(&sft("token"))[1].whole_batch);
    let around =
        format!(r#"{{"loss": "with_sft", "weight": 1, "objective": {{"loss": {token}}}}}"#);
    assert_eq!(words(&around), "pairs | pairs, tokens of the step");
    assert!(takes(&around).iter().all(|needs| needs.whole_batch));
    assert!(takes(&mixture(&[r#""dpo""#, r#""kto""#])).is_empty());
}

/// Each part is described and built once: otherwise the work doubles with each level, and this test
/// does not end.
#[test]
fn objectives_nest_deeply() {
    let mut mixture = r#"{"loss": "dpo"}"#.to_owned();
    for _ in 0..30 {
        mixture =
            format!(r#"{{"loss": "mixture", "parts": [{{"weight": 1, "objective": {mixture}}}]}}"#);
    }
    let mut sft = r#"{"loss": "simpo"}"#.to_owned();
    for _ in 0..60 {
        sft = format!(r#"{{"loss": "with_sft", "weight": 0.1, "objective": {sft}}}"#);
    }
    let mixture: ObjectiveConfig = parse(&mixture).unwrap();
    assert_eq!(mixture.takes()[0].to_string(), "pairs, reference");
    assert!(mixture.build::<ReferencedPair>().is_ok());
    assert!(mixture.build::<PolicyPair>().is_err());
    let sft: ObjectiveConfig = parse(&sft).unwrap();
    assert_eq!(sft.takes()[0].to_string(), "pairs");
    assert!(sft.build::<PolicyPair>().is_ok());
    assert_eq!(sft.check(), Ok(()));
}

/// An objective over other batches says what it takes.
#[test]
fn a_batch_that_does_not_fit_is_named() {
    let error = |json: &str| {
        let config: ObjectiveConfig = parse(json).unwrap();
        let error = config.build::<ReferencedPair>().unwrap_err();
        assert!(matches!(error, BuildError::Batch { .. }), "{error}");
        error.to_string()
    };
    assert_eq!(
        error(r#"{"loss": "kto"}"#),
        "`kto` takes unpaired completions, reference, z₀; it does not take pairs, reference"
    );
    assert_eq!(
        error(r#"{"loss": "simpo"}"#),
        "`simpo` takes pairs; it does not take pairs, reference"
    );
    assert_eq!(
        error(r#"{"loss": "with_sft", "weight": 1, "objective": {"loss": "rrhf"}}"#),
        "`with_sft` takes no batch, since its parts have none in common; it does not take pairs, reference"
    );
    let dpo: ObjectiveConfig = parse(r#"{"loss": "dpo"}"#).unwrap();
    let margins = dpo.build::<WithMargin<ReferencedPair>>().unwrap();
    assert_eq!(margins.needs().to_string(), "pairs, reference, margins");
}

#[test]
fn a_file_out_of_range_says_so() {
    let error = |json: &str| {
        let config = parse::<ObjectiveConfig>(json).unwrap();
        let error = config.check().expect_err("out of range");
        let built = config.build::<ReferencedPair>().map(drop);
        assert_eq!(built, Err(error.clone().into()));
        error.to_string()
    };
    assert_eq!(
        error(r#"{"loss": "dpo", "label_noise": {"conservative": 0.7}}"#),
        "`label_noise.conservative` is 0.7, but must be in [0, 0.5)"
    );
    assert_eq!(
        error(r#"{"loss": "exo_pair", "label_smoothing": 0}"#),
        "`label_smoothing` is 0, but must be in (0, 0.5)"
    );
    assert_eq!(
        error(r#"{"loss": "mixture", "parts": []}"#),
        "`parts` is 0, but must be one part at least"
    );
    let nested = r#"{"loss": "with_sft", "weight": 1, "objective": {"loss": "ipo", "tau": -1}}"#;
    assert_eq!(
        error(nested),
        "`tau` is -1, but must be a finite number > 0, in f32"
    );
    let negative = r#"{"loss": "with_sft", "weight": -1, "objective": {"loss": "ipo"}}"#;
    assert_eq!(
        error(negative),
        "`sft_weight` is -1, but must be a finite number ≥ 0, in f32"
    );
    for (json, name) in [
        (
            r#"{"loss": "dpo_shift", "rejected_share": 0}"#,
            "rejected_share",
        ),
        (r#"{"loss": "chipo", "reward_bound": 0}"#, "reward_bound"),
        (r#"{"loss": "dpop", "penalty": -1}"#, "penalty"),
        (r#"{"loss": "discopop", "temperature": 0}"#, "temperature"),
    ] {
        assert!(error(json).starts_with(&format!("`{name}` is ")), "{json}");
    }
    for (json, expected) in [
        (
            r#"{"loss": "bradley_terry", "centering_weight": -1}"#,
            "`centering_weight` is -1, but must be a finite number ≥ 0, in f32",
        ),
        (
            r#"{"loss": "bradley_terry_ties", "tie_model": {"rao_kupper": 1}}"#,
            "`tie_model.rao_kupper` is 1, but must be a finite number > 1, in f32",
        ),
        (
            r#"{"loss": "bradley_terry_ties", "tie_model": {"davidson": 0}}"#,
            "`tie_model.davidson` is 0, but must be a finite number > 0, in f32",
        ),
    ] {
        assert_eq!(error(json), expected);
    }
    assert_eq!(
        error(r#"{"loss": "rao_kupper", "tie_factor": 1}"#),
        "`tie_factor` is 1, but must be a finite number > 1, in f32"
    );
}

#[test]
fn presets_are_what_they_say() {
    let (token, mean) = (NllNormalization::Token, Normalization::Mean);
    let sum = IpoLossConfig::new().with_normalization(Normalization::Sum);
    assert_eq!(IpoLossConfig::paper(), sum);
    let per_token = IpoLossConfig::new().with_normalization(mean);
    assert_eq!(IpoLossConfig::new(), per_token);
    let cpo = CpoLossConfig::new().with_nll_normalization(token);
    assert_eq!(CpoLossConfig::trl(), cpo);
    let tpo = TpoLossConfig::new().with_nll_normalization(token);
    assert_eq!(TpoLossConfig::trl(), tpo);
    let tpo_l = TpoLossConfig::new().with_normalization(mean);
    assert_eq!(TpoLossConfig::tpo_l(0.5), tpo_l.with_target_margin(0.5));
    let orpo = OrpoLossConfig::new().with_nll_normalization(token);
    assert_eq!(OrpoLossConfig::trl(), orpo);
    assert_eq!(SppoLossConfig::trl(), SppoLossConfig::new().with_beta(0.1));
    let simpo = SimpoLossConfig::new()
        .with_beta(2.5)
        .with_target_margin(1.25);
    assert_eq!(SimpoLossConfig::from_margin_ratio(2.5, 0.5), simpo);
    let simnpo = SimnpoLossConfig::new()
        .with_beta(2.5)
        .with_target_margin(0.75);
    assert_eq!(SimnpoLossConfig::from_margin_ratio(2.5, 0.3), simnpo);
}

/// α = 1 would be DPO under another name: a file has to say it, and so has a program.
#[test]
fn h_dpo_has_no_default_weight() {
    let of = |json: &str| {
        let config: ObjectiveConfig = parse(json).unwrap();
        config.build::<ReferencedPair>()
    };
    let error = of(r#"{"loss": "hdpo", "beta": 0.2}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`entropy_weight` is NaN, but must be given: it has no default"
    );
    let built = of(r#"{"loss": "hdpo", "beta": 0.2, "entropy_weight": 0.9}"#).unwrap();
    let expected = HdpoLossConfig::new(0.9).with_beta(0.2);
    assert_eq!(*built.config(), ObjectiveConfig::Hdpo(expected));
}
