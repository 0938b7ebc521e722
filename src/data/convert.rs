//! Labels of one kind as labels of another.

use std::cmp::Ordering;

use super::example::Example;
use super::json::{Json, Object};
use super::label::{Desirable, Preference, Scores, fits_f32};
use crate::error::InvalidInput;

/// The pairs that a ranked list becomes. Two candidates of equal score are never one.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Pairing {
    /// One pair: the first of the best against the first of the worst. UltraFeedback's
    /// binarisation takes a random one for the worst.
    BestWorst,
    /// Each candidate and those of the next lower score, in the order of their scores.
    Adjacent,
    /// All pairs whose scores are at least so far apart, as `f64` subtracts them (0.3 − 0.1 is a
    /// little less than 0.2); 0 for all that differ.
    Gap(f64),
}

impl<T: Clone> Example<T, Scores> {
    /// Makes pairs of a ranked list, the best one first.
    ///
    /// The scores of a pair are in its columns `score_chosen` and `score_rejected`, as
    /// UltraFeedback calls them: for a margin, or to weight the pair.
    ///
    /// ```
    /// use burn_preference::data::{Example, Pairing};
    ///
    /// let of = |text: &str| text.to_owned();
    /// let answers = vec![of("a"), of("b"), of("c")];
    /// let list = Example::ranked(of("?"), answers, vec![0.5, 2.0, 1.0])?;
    /// let pairs = list.pairs(Pairing::Gap(1.0))?;
    /// let sides = |i: usize| (&**pairs[i].chosen(), &**pairs[i].rejected());
    /// assert_eq!([sides(0), sides(1)], [("b", "a"), ("b", "c")]);
    /// assert_eq!(pairs[0].columns["score_chosen"].as_f64(), Some(2.0));
    /// # Ok::<(), burn_preference::InvalidInput>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The gap is negative or no number, or a score is not finite.
    pub fn pairs(&self, pairing: Pairing) -> Result<Vec<Example<T, Preference>>, InvalidInput> {
        let scores = &self.label.0;
        if let Some(score) = scores.iter().find(|score| !fits_f32(**score)) {
            return Err(InvalidInput::new("scores", "numbers that f32 holds", score));
        }
        let mut order: Vec<usize> = (0..scores.len()).collect();
        // Stable: of equal scores the first one stays first.
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let all = || (0..order.len()).flat_map(|i| (i + 1..order.len()).map(move |j| (i, j)));
        let score = |place: usize| scores[order[place]];
        let places: Vec<(usize, usize)> = match pairing {
            Pairing::BestWorst => {
                let worst = (0..order.len()).find(|&j| score(j) == score(order.len() - 1));
                worst.map(|worst| (0, worst)).into_iter().collect()
            }
            Pairing::Adjacent => {
                let pairs_of = |i: usize| {
                    let next = (i + 1..order.len()).find(|&j| score(j) < score(i));
                    let is_next = move |&j: &usize| next.is_some_and(|n| score(j) == score(n));
                    (i + 1..order.len()).filter(is_next).map(move |j| (i, j))
                };
                (0..order.len()).flat_map(pairs_of).collect()
            }
            Pairing::Gap(gap) if gap >= 0.0 => {
                let far = |&(i, j): &(usize, usize)| score(i) - score(j) >= gap;
                let mut places: Vec<_> = all().filter(far).collect();
                places.sort_by(|a, b| {
                    let gap = |&(i, j): &(usize, usize)| score(i) - score(j);
                    gap(b).total_cmp(&gap(a))
                });
                places
            }
            Pairing::Gap(gap) => {
                return Err(InvalidInput::new("gap", "a number ≥ 0", gap));
            }
        };
        let pair = |(i, j): (usize, usize)| {
            let mut columns = Object::clone(&self.columns);
            for (name, place) in [("score_chosen", i), ("score_rejected", j)] {
                columns.insert(name, Json::from(score(place)));
            }
            self.some(&[order[i], order[j]], Preference)
                .with_columns(columns)
        };
        let different = places.into_iter().filter(|&(i, j)| score(i) > score(j));
        Ok(different.map(pair).collect())
    }
}

impl<T: Clone> Example<T, Preference> {
    /// Takes the pair apart: the chosen completion is desirable, the rejected one is not.
    ///
    /// That is another claim than the pair's: that the chosen one is good, and not only better.
    /// TRL's `unpair_preference_dataset` does the same and lists all desirable ones first; shuffle
    /// either.
    pub fn unpair(&self) -> [Example<T, Desirable>; 2] {
        [(0, true), (1, false)].map(|(place, desirable)| self.some(&[place], Desirable(desirable)))
    }
}

/// The share of annotators who rate the first completion above the second, ties half: the win
/// probability that [`WithPreference`](crate::WithPreference) takes.
///
/// ```
/// use burn_preference::data::win_probability;
///
/// // Two annotators prefer the first, one is undecided, one prefers the second.
/// assert_eq!(win_probability(&[[5.0, 3.0], [4.0, 1.0], [2.0, 2.0], [1.0, 3.0]])?, 0.625);
/// # Ok::<(), burn_preference::InvalidInput>(())
/// ```
///
/// # Errors
///
/// There is no annotator, or a rating is not a number.
pub fn win_probability(ratings: &[[f64; 2]]) -> Result<f64, InvalidInput> {
    if ratings.is_empty() {
        return Err(InvalidInput::new(
            "ratings",
            "one annotator at least",
            "none",
        ));
    }
    let mut wins = 0.0;
    for [first, second] in ratings {
        wins += match first.partial_cmp(second) {
            Some(Ordering::Greater) => 1.0,
            Some(Ordering::Equal) => 0.5,
            Some(Ordering::Less) => 0.0,
            None => return Err(InvalidInput::new("ratings", "numbers", f64::NAN)),
        };
    }
    Ok(wins / ratings.len() as f64)
}
