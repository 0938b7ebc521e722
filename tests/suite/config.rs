//! Configs: ranges, files, and what a typo says.

use burn::config::Config;
use burn::tensor::DType;
use burn_preference::config::{
    PairObjective, PairObjectiveConfig, RankedObjective, RankedObjectiveConfig, RewardObjective,
    RewardObjectiveConfig, ScoredObjective, ScoredObjectiveConfig, ScoredPairObjectiveConfig,
    TiedPairObjectiveConfig, UnpairedObjective, UnpairedObjectiveConfig,
};
use burn_preference::{
    BradleyTerryTiesLossConfig, CpoLossConfig, Divergence, DpoLossConfig, DroLossConfig,
    HdpoLossConfig, IpoLossConfig, KtoLossConfig, LabelNoise, NllNormalization, Normalization,
    OrpoLossConfig, RrhfLossConfig, SimnpoLossConfig, SimpoLossConfig, SppoLossConfig, TieModel,
    TpoLossConfig,
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

/// Every tag of the enum, as serde's own error lists them.
fn tags<C: DeserializeOwned>() -> Vec<String> {
    let error = parse::<C>(r#"{"loss": "?"}"#)
        .err()
        .expect("no objective has this name");
    let expected = error
        .split("expected")
        .nth(1)
        .expect("the error lists the tags");
    let tags = expected.split('`').skip(1).step_by(2);
    tags.map(str::to_owned).collect()
}

fn round_trip<C: DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug>(
    nested: &[&str],
) {
    let tags = tags::<C>();
    assert!(tags.len() >= 2, "{tags:?}");
    for tag in tags.iter().filter(|tag| !nested.contains(&tag.as_str())) {
        let required = match tag.as_str() {
            "hdpo" => r#", "entropy_weight": 0.9"#,
            _ => "",
        };
        let config: C = parse(&format!(r#"{{"loss": "{tag}"{required}}}"#)).unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert!(json.starts_with(&format!(r#"{{"loss":"{tag}""#)), "{json}");
        assert_eq!(parse::<C>(&json).unwrap(), config, "{json}");
        let error = parse::<C>(&format!(r#"{{"loss": "{tag}", "betta": 1}}"#)).unwrap_err();
        assert!(error.contains("unknown field `betta`"), "{tag}: {error}");
    }
}

#[test]
fn every_objective_of_a_file_round_trips() {
    round_trip::<PairObjectiveConfig>(&["mixture", "with_sft"]);
    round_trip::<UnpairedObjectiveConfig>(&[]);
    round_trip::<RankedObjectiveConfig>(&[]);
    round_trip::<ScoredPairObjectiveConfig>(&[]);
    round_trip::<TiedPairObjectiveConfig>(&[]);
    round_trip::<RewardObjectiveConfig>(&[]);
    round_trip::<ScoredObjectiveConfig>(&[]);
    let error = parse::<PairObjectiveConfig>(r#"{"beta": 0.1}"#).unwrap_err();
    assert!(error.contains("missing field `loss`"), "{error}");
    let error = parse::<PairObjectiveConfig>(r#"{"loss": "dop"}"#).unwrap_err();
    assert!(
        error.contains("unknown variant `dop`") && error.contains("`dpo`"),
        "{error}"
    );
    let error = parse::<PairObjectiveConfig>(r#"{"loss": "with_sft", "weight": 1}"#).unwrap_err();
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
    let losses = |json: &str| match parse::<PairObjectiveConfig>(json).unwrap().try_init() {
        Ok(PairObjective::Referenced(objective)) => pairs.run(&objective, DType::F64).losses,
        Ok(PairObjective::ReferenceFree(objective)) => {
            pairs.run_policy(&objective, DType::F64).losses
        }
        Err(error) => panic!("{error}"),
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
    let config: PairObjectiveConfig = parse(&sft).unwrap();
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(parse::<PairObjectiveConfig>(&json), Ok(config));

    // Reference-free parts alone stay reference-free.
    let free = r#"{"loss": "mixture", "parts": [{"weight": 1, "objective": {"loss": "orpo"}}]}"#;
    let free = parse::<PairObjectiveConfig>(free).unwrap().try_init();
    assert!(matches!(free, Ok(PairObjective::ReferenceFree(_))));
    let unpaired = parse::<UnpairedObjectiveConfig>(r#"{"loss": "kto"}"#)
        .unwrap()
        .try_init();
    assert_eq!(
        unpaired,
        Ok(UnpairedObjective::Kto(KtoLossConfig::new().init()))
    );
    let reward = r#"{"loss": "bradley_terry_ties", "tie_model": {"davidson": 2}}"#;
    let reward = parse::<RewardObjectiveConfig>(reward).unwrap().try_init();
    let ties = BradleyTerryTiesLossConfig::new().with_tie_model(TieModel::Davidson(2.0));
    assert_eq!(reward, Ok(RewardObjective::BradleyTerryTies(ties.init())));
    let scored = parse::<ScoredObjectiveConfig>(r#"{"loss": "dro", "tau": 2}"#);
    let dro = DroLossConfig::new().with_tau(2.0).init();
    assert_eq!(scored.unwrap().try_init(), Ok(ScoredObjective::Dro(dro)));
    let ranked = parse::<RankedObjectiveConfig>(r#"{"loss": "rrhf"}"#)
        .unwrap()
        .try_init();
    assert!(matches!(ranked, Ok(RankedObjective::ReferenceFree(_))));
}

#[test]
fn a_file_out_of_range_says_so() {
    let error = |json: &str| {
        let config = parse::<PairObjectiveConfig>(json).unwrap();
        config.try_init().expect_err("out of range").to_string()
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
        let config = parse::<RewardObjectiveConfig>(json).unwrap();
        assert_eq!(config.try_init().unwrap_err().to_string(), expected);
    }
    let tied = parse::<TiedPairObjectiveConfig>(r#"{"loss": "rao_kupper", "tie_factor": 1}"#);
    let error = tied.unwrap().try_init().expect_err("ν > 1");
    assert_eq!(
        error.to_string(),
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
    let of = |json: &str| parse::<PairObjectiveConfig>(json).unwrap().try_init();
    let error = of(r#"{"loss": "hdpo", "beta": 0.2}"#).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`entropy_weight` is NaN, but must be given: it has no default"
    );
    let built = of(r#"{"loss": "hdpo", "beta": 0.2, "entropy_weight": 0.9}"#).unwrap();
    let expected = HdpoLossConfig::new(0.9).with_beta(0.2);
    assert_eq!(*built.config(), PairObjectiveConfig::Hdpo(expected));
}
