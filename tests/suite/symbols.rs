//! A reader finds every letter of an objective's formula: in the table of `loss`, or on its page.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// A mean over tokens: ℓ̄ is ℓ and this.
const MACRON: char = '\u{304}';

/// The letters that stand for something: each Greek one and ℓ, and Latin ones that stand alone.
/// Without their indices: of `ρ_w` it is ρ.
fn symbols(text: &str) -> BTreeSet<char> {
    let words = text.split(|c: char| !(c.is_alphabetic() || c == '_' || c == MACRON));
    let names = words.filter_map(|word| word.split('_').next());
    let letters = names.map(|name| name.chars().filter(|&c| c != MACRON).collect::<Vec<_>>());
    let stand_for = |letters: &Vec<char>| {
        letters.len() == 1 || letters.iter().any(|c| matches!(c, 'Ͱ'..='Ͽ' | 'ℓ'))
    };
    letters.filter(stand_for).flatten().collect()
}

/// Whether a formula says what the letter is: `Δ = …`, `T_k = …`, `u ∈ …`.
fn is_defined(formula: &str, symbol: char) -> bool {
    formula.match_indices(symbol).any(|(at, _)| {
        let mut words = formula[at..].split_whitespace();
        matches!(words.nth(1), Some("=" | "∈"))
    })
}

/// Each objective's name, its formula, and what else its page says.
fn pages() -> Vec<(String, String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/loss");
    let mut pages = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for declaration in text.split("objective! {\n").skip(1) {
            let (declaration, _) = declaration.split_once("\n}").unwrap();
            let (_, name) = declaration.split_once("pub struct ").unwrap();
            let name = name.split(' ').next().unwrap().to_owned();
            let (mut formula, mut rest, mut inside) = (String::new(), String::new(), false);
            for line in declaration.lines().map(str::trim) {
                let page = match line.strip_prefix("///") {
                    Some(line) if line.contains("```") => {
                        inside = !inside;
                        continue;
                    }
                    Some(_) if inside => &mut formula,
                    Some(_) => &mut rest,
                    // What a required number is.
                    None if line.starts_with('"') => &mut rest,
                    None => continue,
                };
                page.extend([line.trim_start_matches('/'), "\n"]);
            }
            pages.push((name, formula, rest));
        }
    }
    pages
}

#[test]
fn every_letter_of_a_formula_is_explained() {
    let loss = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/loss/mod.rs");
    let loss = fs::read_to_string(loss).unwrap();
    let (_, table) = loss
        .split_once("//! # Symbols")
        .expect("a table of symbols");
    let (table, _) = table.split_once("//! # ").expect("the next section");
    let rows = table.lines().filter_map(|line| line.split('|').nth(1));
    let known: BTreeSet<char> = rows.flat_map(symbols).chain(['Σ']).collect();
    assert!(known.contains(&'ρ') && known.contains(&'ℓ'), "{known:?}");

    let pages = pages();
    let (_, exports) = loss
        .split_once("\npub use ")
        .expect("what the module exports");
    let exported = exports.matches("LossConfig").count();
    assert_eq!(pages.len(), exported, "a page for each objective");
    for (name, formula, rest) in pages {
        let here = symbols(&rest);
        let unknown: Vec<char> = symbols(&formula)
            .into_iter()
            .filter(|c| !known.contains(c) && !here.contains(c) && !is_defined(&formula, *c))
            .collect();
        assert!(
            unknown.is_empty(),
            "{name}: nothing explains {unknown:?} of\n{formula}"
        );
    }
}
