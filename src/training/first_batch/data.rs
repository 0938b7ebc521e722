//! Findings of the data alone: no model is called.

use super::batch::{FirstBatch, Labels};
use super::finding::Finding;
use super::host::HostTokens;
use super::length;

pub(super) fn findings(tokens: &HostTokens, batch: &FirstBatch) -> Vec<Finding> {
    let labels = &batch.labels;
    let mut findings = Vec::new();
    findings.extend(batch.vocab.and_then(|vocab| outside(tokens, vocab)));
    let of = tokens.rows;

    let is_absent = |row: usize| matches!(labels, Labels::Lists(present) if !present[row]);
    let rows = tokens.rows_where(|row| tokens.length(row) == 0 && !is_absent(row));
    if !rows.is_empty() {
        findings.push(Finding::NothingCounts { rows, of });
    }
    let everything_counts = |row: usize| {
        let mut real = tokens.real(row).peekable();
        real.peek().is_some() && real.all(|i| tokens.mask[i])
    };
    let rows = tokens.rows_where(|row| everything_counts(row) && tokens.length(row) > 0);
    if !rows.is_empty() {
        findings.push(Finding::EverythingCounts { rows, of });
    }
    let counted_padding = |row: usize| {
        let both = |&i: &usize| tokens.mask[i] && tokens.padding[i];
        tokens.row(row).filter(both).count()
    };
    let rows = tokens.rows_where(|row| counted_padding(row) > 0);
    if !rows.is_empty() {
        let tokens = (0..of).map(counted_padding).sum();
        findings.push(Finding::PaddingCounts { tokens, rows, of });
    }
    let lengths = match labels {
        Labels::None | Labels::Lists(_) => None,
        Labels::Pairs => {
            findings.extend(of_pairs(tokens, &batch.contexts));
            let of = tokens.rows / 2;
            length::of_pairs((0..of).map(|i| (tokens.length(i), tokens.length(of + i))))
        }
        Labels::Unpaired(desirable) => {
            let lengths = (0..of).map(|row| tokens.length(row));
            length::of_unpaired(lengths.zip(desirable.iter().copied()))
        }
    };
    // One batch in a hundred without any relation is reported.
    let lengths = lengths.filter(|relation| relation.p_value < 0.01);
    findings.extend(lengths.map(|relation| Finding::LengthTellsLabel {
        share: relation.share,
        p_value: relation.p_value,
    }));
    findings
}

fn of_pairs(tokens: &HostTokens, contexts: &[Option<[u8; 32]>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let of = tokens.rows / 2;
    let pairs_where = |is: &dyn Fn(usize, usize) -> bool| -> Vec<usize> {
        (0..of).filter(|&i| is(i, of + i)).collect()
    };
    let ids_and_counted = |row| -> Vec<(i64, bool)> {
        let real = tokens.real(row);
        real.map(|i| (tokens.ids[i], tokens.counted[i])).collect()
    };
    // The tokens before the first one that counts.
    let prompt = |row| -> Vec<i64> {
        let real = tokens.real(row).take_while(|&i| !tokens.counted[i]);
        real.map(|i| tokens.ids[i]).collect()
    };
    // Where nothing counts, there is no completion to compare.
    let counts = |row| tokens.length(row) > 0;
    // Both are none where nobody said.
    let same_context = |w, l| contexts.get(w) == contexts.get(l);
    let is_same = |w, l| same_context(w, l) && ids_and_counted(w) == ids_and_counted(l);
    let pairs = pairs_where(&|w, l| counts(w) && is_same(w, l));
    if !pairs.is_empty() {
        findings.push(Finding::IdenticalSides { pairs, of });
    }
    let pairs = pairs_where(&|w, l| counts(w) && counts(l) && prompt(w) != prompt(l));
    if !pairs.is_empty() {
        findings.push(Finding::PromptsDiffer { pairs, of });
    }
    findings
}

fn outside(tokens: &HostTokens, vocab: usize) -> Option<Finding> {
    let is_inside = |id: i64| usize::try_from(id).is_ok_and(|id| id < vocab);
    let mut outside = (0..tokens.ids.len()).filter(|&i| !is_inside(tokens.ids[i]));
    let first = outside.next()?;
    Some(Finding::OutsideVocabulary {
        tokens: 1 + outside.count(),
        id: tokens.ids[first],
        row: first / tokens.time,
        position: first % tokens.time,
        vocab,
    })
}
