//! Configs: ranges, files, and what a typo says.

use burn::config::Config;
use burn_preference::{
    Divergence, DpoLossConfig, IpoLossConfig, KtoLossConfig, LabelNoise, NllNormalization,
    Normalization, OrpoLossConfig, RrhfLossConfig,
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
            ("beta", "a finite number > 0")
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
#[should_panic(expected = "`beta` is 0, but must be a finite number > 0")]
fn init_panics_with_the_same_words() {
    let _ = DpoLossConfig::new().with_beta(0.0).init();
}
