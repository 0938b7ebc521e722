//! The tables of objectives, and of what each was checked against, come from here.
//!
//! ```console
//! UPDATE_DOCS=1 cargo test --workspace --test suite catalogue
//! ```
//!
//! `docs/objectives.md` and `docs/checked.md` are for readers of the repository, `docs/rustdoc/` is
//! what the documentation includes. They differ in the links of names alone.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use burn_preference::config::ObjectiveConfig;
use burn_preference::needs::{ColumnKind, Needs};
use serde_json::{Map, Value, json};

use crate::optimum::{STATEMENTS, Statement};

/// The objective's struct, its paper, and the peers that have it: in brackets those whose values the
/// conformance suite does not compare, or whose formula is another.
type Row = (&'static str, &'static str, &'static str);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("DpoLoss", "2305.18290", "TRL, Liger, HALOs, torchtune, OpenRLHF, open-instruct, oxRL, Mitchell"),
    ("IpoLoss", "2310.12036", "TRL, HALOs, OpenRLHF, oxRL, Mitchell"),
    ("HingeLoss", "2309.06657", "TRL, Liger, torchtune, oxRL"),
    ("GpoLoss", "2402.05749", "oxRL"),
    ("DiscopopLoss", "2406.08414", "TRL, Liger, oxRL"),
    ("ExoPairLoss", "2402.00856", "TRL, Liger, oxRL"),
    ("NcaLoss", "2402.05369", "TRL, Liger, oxRL"),
    ("BcoLoss", "2404.04656", "TRL, Liger, oxRL"),
    ("SppoLoss", "2405.00675", "TRL, Liger, oxRL"),
    ("ApoZeroLoss", "2408.06266", "TRL, Liger"),
    ("ApoDownLoss", "2408.06266", "TRL, Liger"),
    ("DpopLoss", "2402.13228", "oxRL"),
    ("RdpoLoss", "2403.19159", "(oxRL)"),
    ("CalDpoLoss", "2412.14516", "oxRL, (authors)"),
    ("AotLoss", "2406.05882", "TRL, oxRL"),
    ("DpoShiftLoss", "2502.07599", "oxRL"),
    ("HdpoLoss", "2411.07595", "oxRL"),
    ("ChipoLoss", "2407.13399", "oxRL"),
    ("BetaDpoLoss", "2407.08639", "authors"),
    ("TdpoLoss", "2404.11999", "authors"),
    ("RpoLoss", "2406.11704", "(NeMo-Aligner)"),
    ("RebelLoss", "2404.16767", "authors"),
    ("RaoKupperLoss", "2409.17431", ""),
    ("DavidsonLoss", "2409.17431", ""),
    ("SimpoLoss", "2405.14734", "TRL, Liger, HALOs, LLaMA-Factory, open-instruct, oxRL, authors"),
    ("CpoLoss", "2401.08417", "TRL, Liger, oxRL"),
    ("AlphaPoLoss", "2501.03884", "TRL, oxRL"),
    ("OrpoLoss", "2403.07691", "TRL, Liger, LLaMA-Factory, oxRL, authors"),
    ("SlicHfLoss", "2305.10425", "(HALOs)"),
    ("SimperLoss", "2502.00883", "authors"),
    ("AsftLoss", "2409.10571", ""),
    ("TpoLoss", "2405.16681", "TRL, authors"),
    ("SftLoss", "2203.02155", "TRL"),
    ("GrpoLoss", "2402.03300", "TRL, Liger"),
    ("KtoLoss", "2402.01306", "TRL, Liger, HALOs"),
    ("NpoLoss", "2404.05868", "open-unlearning"),
    ("SimnpoLoss", "2410.07163", "open-unlearning"),
    ("DroLoss", "2405.19107", ""),
    ("AstarPoLoss", "2505.20686", "TRL, authors"),
    ("QrpoLoss", "2507.08068", "authors"),
    ("PlackettLuceLoss", "2305.18290", "allRank"),
    ("SdpoLoss", "2406.09215", "authors"),
    ("LipoLoss", "2402.01878", "allRank"),
    ("InfoNcaLoss", "2402.05369", "authors"),
    ("NcaListLoss", "2402.05369", ""),
    ("ExoListLoss", "2402.00856", "authors"),
    ("RrhfLoss", "2304.05302", "authors"),
    ("ProLoss", "2306.17492", "authors"),
    ("BradleyTerryLoss", "2203.02155", "TRL, OpenRLHF"),
    ("BradleyTerryTiesLoss", "2409.17431", ""),
    ("RewardRankingLoss", "2203.02155", ""),
];

/// Every objective once: what it is to a reader who has to choose, and one line of advice.
#[rustfmt::skip]
const TIERS: &[(&str, &str, &[&str])] = &[
    (
        "used in practice",
        "Begin here: many train with these, so that there are recipes, and numbers to compare yours with.",
        &["SftLoss", "GrpoLoss", "DpoLoss", "IpoLoss", "SimpoLoss", "CpoLoss", "OrpoLoss", "KtoLoss", "BcoLoss", "ApoZeroLoss", "NpoLoss", "BradleyTerryLoss"],
    ),
    (
        "graded data",
        "Take one where labels say how much better: scores, win probabilities, ties or ranks. Plain pairs made of them forget it; DPO with a margin or a win probability does not.",
        &["SppoLoss", "RpoLoss", "RebelLoss", "RaoKupperLoss", "DavidsonLoss", "PlackettLuceLoss", "LipoLoss", "InfoNcaLoss", "NcaListLoss", "ExoListLoss", "RrhfLoss", "ProLoss", "DroLoss", "AstarPoLoss", "QrpoLoss", "BradleyTerryTiesLoss", "RewardRankingLoss"],
    ),
    (
        "research",
        "Take one where you see the problem that its paper names, and tune DPO beside it as carefully.",
        &["HingeLoss", "GpoLoss", "DiscopopLoss", "ExoPairLoss", "NcaLoss", "ApoDownLoss", "DpopLoss", "RdpoLoss", "CalDpoLoss", "AotLoss", "DpoShiftLoss", "HdpoLoss", "ChipoLoss", "BetaDpoLoss", "TdpoLoss", "AlphaPoLoss", "SlicHfLoss", "SimperLoss", "AsftLoss", "SimnpoLoss", "TpoLoss", "SdpoLoss"],
    ),
];

/// Where a table is read, which decides what a name links to.
#[derive(Clone, Copy)]
enum For {
    /// The page of docs.rs.
    Repository,
    /// The item, which rustdoc checks.
    Rustdoc,
}

impl For {
    fn link(self, name: &str) -> String {
        let target = match self {
            Self::Repository => format!(
                "https://docs.rs/burn-preference/latest/burn_preference/loss/struct.{name}.html"
            ),
            Self::Rustdoc => format!("crate::{name}"),
        };
        format!("[`{name}`]({target})")
    }

    fn links(self, names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|name| self.link(name)).collect();
        names.join(", ")
    }
}

/// Which objectives to look at first.
fn tiers(reader: For) -> String {
    let mut table = String::from("| tier | objectives | advice |\n|---|---|---|\n");
    for (tier, advice, names) in TIERS {
        let names = reader.links(names);
        writeln!(table, "| {tier} | {names} | {advice} |").unwrap();
    }
    table
}

/// The config of an objective by the name of its struct, with the defaults of a file.
fn config(name: &str) -> ObjectiveConfig {
    let camel = name.strip_suffix("Loss").expect("a loss");
    let mut tag = String::new();
    for c in camel.chars() {
        if c.is_uppercase() && !tag.is_empty() {
            tag.push('_');
        }
        tag.extend(c.to_lowercase());
    }
    serde_json::from_value(json!({ "loss": tag })).unwrap_or_else(|error| panic!("{error}"))
}

/// The fields of a config with their defaults.
fn fields(config: &ObjectiveConfig) -> Map<String, Value> {
    let Value::Object(mut object) = json!(config) else {
        panic!("{config:?} is no object");
    };
    object.remove("loss");
    object
}

/// Batches of an objective in words, by kind of examples: what it needs, then what may be there.
fn takes(config: &ObjectiveConfig) -> String {
    let takes = config.takes();
    let mut kinds: Vec<&Needs> = Vec::new();
    for needs in &takes {
        if !kinds.iter().any(|known| known.examples == needs.examples) {
            kinds.push(needs);
        }
    }
    let words = kinds.into_iter().map(|least| {
        let others = takes
            .iter()
            .filter(|n| n.examples == least.examples)
            .skip(1);
        let is_taken = |column: &ColumnKind| {
            let alone = least.clone().with_column(*column);
            others.clone().any(|needs| needs.columns == alone.columns)
        };
        let more = others.clone().map(|needs| {
            let has = needs.columns.strip_prefix(least.columns.as_slice());
            let has = has.unwrap_or_else(|| panic!("{config:?}: the least is not the first"));
            if has.len() == 2 && has.iter().all(is_taken) {
                return "both".to_owned();
            }
            has.iter()
                .map(ColumnKind::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        });
        let more: Vec<String> = more.collect();
        match more.as_slice() {
            [] => least.to_string(),
            more => format!("{least}; + {}", more.join(" or ")),
        }
    });
    let mut words = words.collect::<Vec<_>>().join("; or ");
    if takes.iter().any(|needs| needs.whole_batch) {
        words += "; the whole batch";
    }
    words
}

/// Every objective: what it takes, its fields and its paper.
fn table(reader: For) -> String {
    let mut table = String::from(
        "| objective | in a file | takes | fields and defaults | paper |\n\
         |---|---|---|---|---|\n",
    );
    for (name, paper, _) in ROWS {
        let config = config(name);
        let (tag, takes) = (config.name(), takes(&config));
        let fields = fields(&config);
        let fields = fields.iter().map(|(key, value)| match value {
            Value::String(text) => format!("`{key}` {text}"),
            // An alternative with a number of its own.
            Value::Object(choice) => {
                let choice = choice
                    .iter()
                    .map(|(name, number)| format!("{name} {number}"));
                format!("`{key}` {}", choice.collect::<String>())
            }
            Value::Null if key == "entropy_weight" => format!("`{key}` required"),
            Value::Null => format!("`{key}` none"),
            value => format!("`{key}` {value}"),
        });
        let fields = fields.collect::<Vec<_>>().join(", ");
        let paper = format!("[{paper}](https://arxiv.org/abs/{paper})");
        let name = reader.link(name);
        writeln!(table, "| {name} | `{tag}` | {takes} | {fields} | {paper} |").unwrap();
    }
    table
}

/// Those of a row's peers whose values the conformance suite compares.
fn compared(peers: &str) -> Vec<&str> {
    let peers = peers.split(", ").filter(|peer| !peer.is_empty());
    peers.filter(|peer| !peer.starts_with('(')).collect()
}

fn statements(objective: &str) -> &'static [Statement] {
    let mut rows = STATEMENTS.iter().filter(|row| row.0 == objective);
    let row = rows.next();
    row.unwrap_or_else(|| {
        panic!("no row of tests/suite/optimum.rs says what is claimed of {objective}")
    })
    .1
}

/// What each objective was checked against, beside the scalar code that all are.
fn checked(reader: For) -> String {
    let or_dash = |text: &str| {
        if text.is_empty() {
            "—".into()
        } else {
            text.to_owned()
        }
    };
    let mut table = String::from(
        "| objective | peers | what its paper says of the minimum, tested |\n\
         |---|---|---|\n",
    );
    let (mut nobody, mut alone) = (Vec::new(), Vec::new());
    for (name, _, peers) in ROWS {
        let claims: Vec<&str> = statements(name).iter().map(|claim| claim.0).collect();
        // E[r] is no link.
        let claims = claims.join("; ").replace('[', "\\[").replace(']', "\\]");
        match (compared(peers).is_empty(), claims.is_empty()) {
            (true, true) => alone.push(*name),
            (true, false) => nobody.push(*name),
            (false, _) => {}
        }
        let (name, peers, claims) = (reader.link(name), or_dash(peers), or_dash(&claims));
        writeln!(table, "| {name} | {peers} | {claims} |").unwrap();
    }
    let sentence = |what: &str, names: &[&str]| {
        let names = if names.is_empty() {
            "none".into()
        } else {
            reader.links(names)
        };
        format!("\n{what}: {names}.\n")
    };
    table += &sentence(
        "Compared with nobody else's code, but with what the paper says",
        &nobody,
    );
    table += &sentence("Compared with our own scalar code alone", &alone);
    table
}

const OBJECTIVES: &str = "\
# Objectives

All objectives of burn-preference: which to look at first, then what each takes, its fields with
their defaults, and its paper. [What each was checked against](checked.md) is a table of its own.

";

const CHECKED: &str = "\
# What the objectives were checked against

Every objective agrees, with its gradients, with scalar f64 code of the tests that was written from
its paper. That code may misread the paper as the objective does, so there are two more witnesses:
code that others wrote, and what the paper says of the minimum of its loss, which a test reaches by
optimising a policy over three completions on every pair of them. Peers in brackets have the
objective, but their values were not compared, or belong to another formula. A dash means that there
is nothing to compare with, or no such statement that we know of. The order of the candidates in a
list changes no loss and no gradient, ties included (`tests/suite/laws.rs`).

The values of the scalar code stand in the folder `vectors/`, as JSON for any library. TPO, S-DPO, A*-PO,
QRPO and Bradley–Terry were compared through it: their peers run on these files, and their losses and
gradients agree, by the named conventions where these differ (`python3 vectors/check.py --clones DIR`).
Of TPO its authors' code has the term of the pair alone there; QRPO's leaves the −1 of Z out.

";

/// What the divergences of two models were checked against: peers, and laws.
const DIVERGENCES: &[(&str, &str, &str)] = &[
    (
        "ForwardKl",
        "TRL, Liger",
        "0 at π = π° alone, and there the minimum; the reverse of the exchanged models",
    ),
    (
        "ReverseKl",
        "TRL, Liger",
        "0 at π = π° alone, and there the minimum; the forward of the exchanged models",
    ),
    (
        "JensenShannon",
        "TRL, Liger",
        "the same minimum; β with models exchanged is 1 − β; at most −β·ln β − (1 − β)·ln(1 − β); at its ends β·KL and (1 − β)·KL",
    ),
];

fn divergences(reader: For) -> String {
    let mut table = String::from(
        "\nThe divergences of two models per token agree, with their gradients, with scalar f64 code and with\n\
         difference quotients, in every number type and layout (`tests/suite/discrepancy.rs`).\n\n\
         | divergence | peers | laws, tested |\n|---|---|---|\n",
    );
    for (name, peers, laws) in DIVERGENCES {
        let target = match reader {
            For::Repository => format!(
                "https://docs.rs/burn-preference/latest/burn_preference/log_probs/enum.Discrepancy.html#variant.{name}"
            ),
            For::Rustdoc => format!("crate::log_probs::Discrepancy::{name}"),
        };
        writeln!(table, "| [`{name}`]({target}) | {peers} | {laws} |").unwrap();
    }
    table
}

/// Each file that is written here, and its text.
fn files() -> [(&'static str, String); 5] {
    use For::{Repository, Rustdoc};
    // Its title is the one of the section that includes it.
    let (_, checked_text) = CHECKED.split_once("\n\n").unwrap();
    [
        (
            "docs/objectives.md",
            format!("{OBJECTIVES}{}\n{}", tiers(Repository), table(Repository)),
        ),
        (
            "docs/checked.md",
            format!(
                "{CHECKED}{}{}",
                checked(Repository),
                divergences(Repository)
            ),
        ),
        ("docs/rustdoc/tiers.md", tiers(Rustdoc)),
        ("docs/rustdoc/objectives.md", table(Rustdoc)),
        (
            "docs/rustdoc/checked.md",
            format!("{checked_text}{}{}", checked(Rustdoc), divergences(Rustdoc)),
        ),
    ]
}

#[test]
fn the_tables_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, text) in files() {
        let file = root.join(name);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            fs::write(&file, &text).unwrap();
            continue;
        }
        let kept = fs::read_to_string(&file).unwrap();
        assert_eq!(
            kept, text,
            "{name}: run UPDATE_DOCS=1 cargo test --test suite catalogue"
        );
    }
}

#[test]
fn every_objective_has_a_row() {
    let exports = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/loss/mod.rs"));
    let exports = exports.unwrap();
    let (_, exports) = exports.split_once("\npub use ").expect("what it exports");
    let names = exports.split(|c: char| !c.is_alphanumeric());
    let mut names: Vec<&str> = names
        .filter(|name| name.ends_with("Loss") && name.len() > 4)
        .collect();
    names.sort_unstable();
    let mut rows: Vec<&str> = ROWS.iter().map(|row| row.0).collect();
    rows.sort_unstable();
    assert_eq!(rows, names);
    let mut claimed: Vec<&str> = STATEMENTS.iter().map(|row| row.0).collect();
    claimed.sort_unstable();
    assert_eq!(claimed, names, "tests/suite/optimum.rs");
}

/// The list in `src/config.rs` and the one here name the same objectives.
#[test]
fn every_name_of_a_file_has_a_row() {
    let mut known = ObjectiveConfig::NAMES.to_vec();
    known.retain(|name| !["mixture", "with_sft"].contains(name));
    known.sort_unstable();
    let mut rows: Vec<&str> = ROWS.iter().map(|row| config(row.0).name()).collect();
    rows.sort_unstable();
    assert_eq!(known, rows);
}

/// The objective that a line of code implements, and over which batches.
fn implemented(line: &str) -> (&str, Vec<String>) {
    if let Some(rest) = line.strip_prefix("impl Objective<") {
        let (batch, rest) = rest.split_once("> for ").expect("an implementation");
        return (rest.trim_end_matches(" {"), vec![batch.to_owned()]);
    }
    let Some(rest) = line.strip_prefix("over_step!(") else {
        return ("", Vec::new());
    };
    let (name, rest) = rest.split_once(", ").expect("an objective");
    let (_, batches) = rest.split_once(": ").expect("batches");
    let batches = batches.trim_end_matches(");").split(", ");
    let both = |batch: &str| [batch.to_owned(), format!("WithStepTokens<{batch}>")];
    (name, batches.flat_map(both).collect())
}

/// An objective declares each batch that it is implemented for.
#[test]
fn every_batch_is_declared() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/loss");
    let mut implementations = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let source = fs::read_to_string(&path).unwrap();
        for line in source.lines() {
            let (name, batches) = implemented(line);
            for batch in batches {
                let (_, declared) = source
                    .split_once(&format!("pub struct {name} from"))
                    .unwrap();
                let (_, declared) = declared.split_once("takes [").unwrap();
                let (declared, _) = declared.split_once(']').unwrap();
                let mut declared = declared.split(',').map(str::trim);
                assert!(
                    declared.any(|declared| declared == batch),
                    "{}: `{name}` does not declare `{batch}`",
                    path.display()
                );
                implementations += 1;
            }
        }
    }
    let mut declared: usize = ROWS.iter().map(|row| config(row.0).takes().len()).sum();
    // Those that only β > 0 takes.
    let with_beta: ObjectiveConfig =
        serde_json::from_value(json!({ "loss": "grpo", "beta": 0.1 })).unwrap();
    declared += with_beta.takes().len();
    assert_eq!(implementations, declared);
}

#[test]
fn every_objective_has_one_tier() {
    let mut tiered: Vec<&str> = TIERS.iter().flat_map(|tier| tier.2).copied().collect();
    tiered.sort_unstable();
    let mut rows: Vec<&str> = ROWS.iter().map(|row| row.0).collect();
    rows.sort_unstable();
    assert_eq!(tiered, rows, "a name for one of TIERS");
}
