//! Whether lengths tell labels apart more often than chance does.

/// The share of comparisons in which the better one is longer, and its two-sided p-value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Relation {
    pub share: f64,
    pub p_value: f64,
}

/// Pairs of (chosen, rejected): the exact sign test, which leaves ties out. None without a pair of
/// unequal lengths.
pub(super) fn of_pairs(lengths: impl Iterator<Item = (usize, usize)>) -> Option<Relation> {
    let (mut longer, mut shorter) = (0_usize, 0_usize);
    for (chosen, rejected) in lengths {
        longer += usize::from(chosen > rejected);
        shorter += usize::from(chosen < rejected);
    }
    let n = longer + shorter;
    if n == 0 {
        return None;
    }
    // P(X ≥ k) of a fair coin: ln C(n, j) from C(n, 0) on, since C(n, j) itself overflows.
    let k = longer.max(shorter);
    let mut ln_choose = 0.0;
    let mut tail = 0.0;
    for j in 0..=n - k {
        tail += f64::exp(ln_choose - n as f64 * std::f64::consts::LN_2);
        ln_choose += ((n - j) as f64).ln() - ((j + 1) as f64).ln();
    }
    Some(Relation {
        share: longer as f64 / n as f64,
        p_value: (2.0 * tail).min(1.0),
    })
}

/// Lengths of unpaired completions, true for a desirable one: the rank-sum test, by its normal
/// approximation with ties and the correction for continuity. None where one label is absent or all
/// lengths are equal.
pub(super) fn of_unpaired(lengths: impl Iterator<Item = (usize, bool)>) -> Option<Relation> {
    let mut sorted: Vec<(usize, bool)> = lengths.collect();
    sorted.sort_unstable();
    let n = sorted.len() as f64;
    let desirable = sorted.iter().filter(|(_, desirable)| *desirable);
    let desirable = desirable.count() as f64;
    let undesirable = n - desirable;
    // Comparisons of a desirable with an undesirable one that the former wins; ties are half a win.
    let (mut wins, mut below, mut ties) = (0.0, 0.0, 0.0);
    for same in sorted.chunk_by(|a, b| a.0 == b.0) {
        let size = same.len() as f64;
        let better = same.iter().filter(|(_, desirable)| *desirable).count() as f64;
        let worse = size - better;
        wins += better * (below + worse / 2.0);
        below += worse;
        ties += size.powi(3) - size;
    }
    let comparisons = desirable * undesirable;
    let variance = comparisons / 12.0 * (n + 1.0 - ties / (n * (n - 1.0)).max(1.0));
    if variance <= 0.0 {
        return None;
    }
    let z = ((wins - comparisons / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    Some(Relation {
        share: wins / comparisons,
        p_value: two_sided(z),
    })
}

/// P(|Z| ≥ z) of a standard normal, to 1.2e-7 relatively: erfc by the Chebyshev fit of Numerical
/// Recipes, §6.2.
fn two_sided(z: f64) -> f64 {
    const FIT: [f64; 10] = [
        -1.265_512_23,
        1.000_023_68,
        0.374_091_96,
        0.096_784_18,
        -0.186_288_06,
        0.278_868_07,
        -1.135_203_98,
        1.488_515_87,
        -0.822_152_23,
        0.170_872_77,
    ];
    let x = z / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + x / 2.0);
    let fit = FIT.iter().rev().fold(0.0, |sum, c| sum * t + c);
    t * (fit - x * x).exp()
}
