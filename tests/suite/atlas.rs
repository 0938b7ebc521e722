//! Draws the loss and the gradient weights of every objective over pairs against the reward
//! margin: one SVG figure, a panel per objective.
//!
//! ```text
//! UPDATE_DOCS=1 cargo test --test suite atlas
//! ```
//!
//! Every objective stands at β = 1, so a margin of 1 is a nat. The two completions move apart
//! symmetrically: against a reference ρ_w = h/2 and ρ_l = −h/2, without one the same around −2.5
//! nats per token. For one pair of equal lengths AOT, R-DPO and β-DPO are DPO, and have no panel.
//! Nor have TPO, which is DPO or SimPO and a constant there, and reward models, whose curves are
//! DPO's and those of ties, with r for ρ.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

use burn::tensor::{Bool, Device, Tensor};
#[allow(clippy::wildcard_imports, reason = "nearly everything there is")]
use burn_preference::*;
use plotters::prelude::*;

use crate::figure;

type Forward = Box<dyn Fn(ReferencedPair) -> LossOutput<Pair<Tensor<1>>>>;

fn of(objective: impl Objective<ReferencedPair> + 'static) -> Forward {
    Box::new(move |pair| objective.forward(pair))
}

fn of_policy(objective: impl Objective<PolicyPair> + 'static) -> Forward {
    Box::new(move |pair| objective.forward(pair.policy()))
}

/// A column with the same value for every example.
fn value(pair: &ReferencedPair, value: f64) -> Tensor<1> {
    pair.chosen.log_ratio().without_autodiff().full_like(value)
}

fn tied<O: Objective<WithTies<ReferencedPair>> + 'static>(objective: O, tie: bool) -> Forward {
    Box::new(move |pair| {
        let ones = value(&pair, 1.0).equal_elem(f64::from(u8::from(tie)));
        let column: Tensor<1, Bool> = ones;
        objective.forward(WithTies::new(pair, column).expect("one per example"))
    })
}

fn scored<O: Objective<WithScores<ReferencedPair>> + 'static>(objective: O) -> Forward {
    Box::new(move |pair| {
        let scores = Pair::new(value(&pair, 1.0), value(&pair, 0.0)).expect("alike");
        objective.forward(WithScores::new(pair, scores).expect("one per example"))
    })
}

/// Every objective by name; the flag says whether it sees the policy alone.
#[rustfmt::skip]
fn objectives() -> Vec<(&'static str, bool, Forward)> {
    let dpo = DpoLossConfig::new().with_beta(1.0);
    let noise = |n| dpo.clone().with_label_noise(n).init();
    let divergence = |d| dpo.clone().with_divergence(d).init();
    let gpo = |link| GpoLossConfig::new().with_beta(1.0).with_link(link).init();
    let rpo = |d| RpoLossConfig::new().with_beta(1.0).with_distance(d).init();
    let (margin, soft) = (dpo.init(), dpo.init());
    let odpo: Forward = Box::new(move |pair| {
        let column = value(&pair, 1.0);
        margin.forward(WithMargin::new(pair, column).expect("one per example"))
    });
    let soft: Forward = Box::new(move |pair| {
        let column = value(&pair, 0.75);
        soft.forward(WithPreference::new(pair, column).expect("one per example"))
    });
    let rao_kupper = || RaoKupperLossConfig::new().with_beta(1.0).init();
    let davidson = || DavidsonLossConfig::new().with_beta(1.0).init();
    let tdpo = TdpoLossConfig::new().with_beta(1.0).init();
    let tdpo: Forward = Box::new(move |pair| {
        let kl = Pair::new(value(&pair, 1.0), value(&pair, 3.0)).expect("alike");
        tdpo.forward(WithSequenceKl::new(pair, kl).expect("one per example"))
    });
    let simpo = SimpoLossConfig::new().with_beta(1.0);
    vec![
        ("DPO", false, of(dpo.init())),
        ("cDPO, ε = 0.2", false, of(noise(LabelNoise::Conservative(0.2)))),
        ("robust DPO, ε = 0.2", false, of(noise(LabelNoise::Robust(0.2)))),
        ("soft label, p = 0.75", false, soft),
        ("ODPO, m = 1", false, odpo),
        ("DPO, forward KL", false, of(divergence(Divergence::ForwardKl))),
        ("DPO, Jensen–Shannon", false, of(divergence(Divergence::JensenShannon))),
        ("DPO, α = ½", false, of(divergence(Divergence::Alpha(0.5)))),
        ("χPO, R = 1", false, of(ChipoLossConfig::new().with_beta(1.0).with_reward_bound(Some(1.0)).init())),
        ("IPO, τ = ½", false, of(IpoLossConfig::new().with_tau(0.5).init())),
        ("hinge", false, of(HingeLossConfig::new().with_beta(1.0).init())),
        ("GPO, squared hinge", false, of(gpo(Link::SquaredHinge))),
        ("GPO, exponential", false, of(gpo(Link::Exponential))),
        ("GPO, Savage", false, of(gpo(Link::Savage))),
        ("DiscoPOP", false, of(DiscopopLossConfig::new().with_beta(1.0).init())),
        ("EXO", false, of(ExoPairLossConfig::new().with_beta(1.0).init())),
        ("NCA", false, of(NcaLossConfig::new().with_beta(1.0).init())),
        ("BCO", false, of(BcoLossConfig::new().with_beta(1.0).init())),
        ("SPPO, β = ½", false, of(SppoLossConfig::new().with_beta(0.5).init())),
        ("APO-zero", false, of(ApoZeroLossConfig::new().with_beta(1.0).init())),
        ("APO-down", false, of(ApoDownLossConfig::new().with_beta(1.0).init())),
        ("DPOP, λ = 5", false, of(DpopLossConfig::new().with_beta(1.0).with_penalty(5.0).init())),
        ("Cal-DPO, β = ½", false, of(CalDpoLossConfig::new().with_beta(0.5).init())),
        ("DPO-Shift, λ = 0.75", false, of(DpoShiftLossConfig::new().with_beta(1.0).init())),
        ("H-DPO, α = 0.8", false, of(HdpoLossConfig::new(0.8).with_beta(1.0).init())),
        ("TDPO₂, K = 1 and 3", false, tdpo),
        ("RPO, d = 1", false, scored(rpo(GapDistance::BackwardKl))),
        ("RPO squared, d = 1", false, scored(rpo(GapDistance::Squared))),
        ("REBEL, d = 1", false, scored(RebelLossConfig::new().init())),
        ("Rao–Kupper, win", false, tied(rao_kupper(), false)),
        ("Rao–Kupper, tie", false, tied(rao_kupper(), true)),
        ("Davidson, win", false, tied(davidson(), false)),
        ("Davidson, tie", false, tied(davidson(), true)),
        ("SimPO, γ = 1", true, of_policy(simpo.init())),
        ("AlphaPO, α = ¼", true, of_policy(AlphaPoLossConfig::new().with_beta(1.0).init())),
        ("CPO", true, of_policy(CpoLossConfig::new().with_beta(1.0).init())),
        ("ORPO, λ = 1", true, of_policy(OrpoLossConfig::new().with_odds_ratio_weight(1.0).init())),
        ("SLiC-HF", true, of_policy(SlicHfLossConfig::new().init())),
        ("SimPER", true, of_policy(SimperLossConfig::new().init())),
        ("ASFT", true, of_policy(AsftLossConfig::new().init())),
    ]
}

/// Loss, −∂loss/∂ℓ_w and ∂loss/∂ℓ_l at each margin. One token per completion.
fn curves(forward: &Forward, free: bool, margins: &[f32]) -> Result<[Vec<f32>; 3], InvalidInput> {
    let device = Device::default();
    let count = margins.len();
    let leaf = |sign: f32| {
        let values: Vec<f32> = margins.iter().map(|h| sign * h / 2.0 - 2.5).collect();
        let leaf = Tensor::<1>::from_floats(values.as_slice(), &device);
        leaf.autodiff().require_grad()
    };
    let level = if free { 0.0 } else { -2.5 };
    let ones = vec![1; count];
    let reference = SequenceLogProbs::from_values(&vec![level; count], &ones, &device)?;
    let (w, l) = (leaf(1.0), leaf(-1.0));
    let side = |leaf: &Tensor<1>| {
        SequenceLogProbs::new(leaf.clone(), &ones)?.relative_to(reference.clone())
    };
    let output = forward(Pair::new(side(&w)?, side(&l)?)?);
    let grads = output.sum().backward();
    let weight = |leaf: &Tensor<1>, sign: f32| -> Vec<f32> {
        let grad = leaf.grad(&grads).map(|grad| grad * sign);
        grad.map_or(vec![0.0; count], |grad| grad.into_data().iter().collect())
    };
    let losses = output.losses().into_data().iter().collect();
    Ok([losses, weight(&w, -1.0), weight(&l, 1.0)])
}

const COLORS: [(&str, RGBColor); 3] = [
    ("loss", RGBColor(40, 40, 40)),
    ("weight of the chosen, −∂loss/∂ℓ_w", RGBColor(0, 114, 178)),
    ("weight of the rejected, ∂loss/∂ℓ_l", RGBColor(213, 94, 0)),
];

fn draw(path: &Path) -> Result<(), Box<dyn Error>> {
    // A point per five pixels, and two more where DiscoPOP bends.
    let tenths = (-40_i16..=40).filter(|i| i % 2 == 0 || i.abs() == 1);
    let margins: Vec<f32> = tenths.map(|i| f32::from(i) / 10.0).collect();
    let objectives = objectives();
    let (columns, width, height) = (5, 256, 170);
    let rows = u32::try_from(objectives.len())?.div_ceil(columns);
    let size = (columns * width, rows * height + 40);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(40);
    for (i, (label, color)) in COLORS.iter().enumerate() {
        let x = 20 + 340 * i32::try_from(i)?;
        head.draw(&PathElement::new(
            [(x, 20), (x + 28, 20)],
            color.stroke_width(3),
        ))?;
        head.draw(&Text::new(*label, (x + 36, 13), ("sans-serif", 15)))?;
    }
    let panels = body.split_evenly((rows as usize, columns as usize));
    for ((name, free, forward), panel) in objectives.iter().zip(&panels) {
        let curves = curves(forward, *free, &margins)?;
        // Steep losses are cut, so that the part around 0 stays readable.
        let all = || curves.iter().flatten().copied();
        let (low, high) = (
            all().fold(0.0, f32::min).max(-4.0),
            all().fold(1.0, f32::max).min(6.0),
        );
        let mut chart = ChartBuilder::on(panel)
            .caption(name, ("sans-serif", 14))
            .margin(8)
            .x_label_area_size(20)
            .y_label_area_size(28)
            .build_cartesian_2d(-4.0_f32..4.0, low - 0.1..high + 0.1)?;
        chart
            .configure_mesh()
            .max_light_lines(0)
            .x_labels(5)
            .y_labels(5)
            .draw()?;
        // Where the two weights are equal, the wider line shows below the other.
        for ((curve, (_, color)), width) in curves.iter().zip(COLORS).zip([2, 5, 2]) {
            let points = margins.iter().copied().zip(curve.iter().copied());
            let inside = points.filter(|(_, y)| (low - 0.1..=high + 0.1).contains(y));
            chart.draw_series(LineSeries::new(inside, color.stroke_width(width)))?;
        }
    }
    root.present()?;
    drop((head, panels, body, root));
    figure::scale_with_the_page(path, size)?;
    let svg = std::fs::read_to_string(path)?;
    std::fs::write(path, compact(&svg))?;
    Ok(())
}

/// The same picture in few bytes, since the documentation includes it: lines of one
/// style are one path of relative steps, and texts of one style share their attributes.
fn compact(svg: &str) -> String {
    // By style, in the order in which they are first drawn: panels do not overlap.
    let mut paths: Vec<(String, String)> = Vec::new();
    let mut texts: Vec<(String, String)> = Vec::new();
    let add = |groups: &mut Vec<(String, String)>, style: String, what: &str| match groups
        .iter_mut()
        .find(|(known, _)| *known == style)
    {
        Some((_, all)) => all.push_str(what),
        None => groups.push((style, what.to_owned())),
    };
    let (mut opening, mut background) = (String::new(), String::new());
    for element in svg.split('<').skip(1) {
        let (tag, text) = element.split_once('>').expect("an element ends");
        let value = |name: &str| {
            let start = tag.find(&format!(" {name}=\""))? + name.len() + 3;
            tag[start..].split('"').next()
        };
        let of = |name: &str| value(name).unwrap_or_else(|| panic!("<{tag}> has {name}"));
        let points = match tag.split(' ').next() {
            Some("svg") => {
                opening = format!("<{tag}>");
                continue;
            }
            Some("rect") => {
                background = format!("<{tag}>");
                continue;
            }
            Some("text") => {
                let size: f64 = of("font-size").parse().expect("a number");
                let style = format!(
                    r#"text-anchor="{}" font-size="{size:.1}""#,
                    of("text-anchor")
                );
                let (x, y, dy) = (of("x"), of("y"), of("dy"));
                let text = format!(
                    "<text x=\"{x}\" y=\"{y}\" dy=\"{dy}\">{}</text>\n",
                    text.trim()
                );
                add(&mut texts, style, &text);
                continue;
            }
            Some("line") => format!("{},{} {},{}", of("x1"), of("y1"), of("x2"), of("y2")),
            Some("polyline") => of("points").to_owned(),
            _ => continue, // what closes an element
        };
        let points = points.split_whitespace().map(|point| {
            let (x, y) = point.split_once(',').expect("x and y");
            let number = |n: &str| n.parse::<i32>().expect("whole pixels");
            (number(x), number(y))
        });
        let mut path = String::new();
        let mut last = None;
        for (x, y) in points {
            match last {
                None => write!(path, "M {x} {y} l"),
                Some((from_x, from_y)) => write!(path, " {} {}", x - from_x, y - from_y),
            }
            .expect("a string takes everything");
            last = Some((x, y));
        }
        let style = ["stroke", "stroke-width", "opacity"].map(|name| match of(name) {
            "1" if name != "stroke" => String::new(),
            value => format!(r#" {name}="{value}""#),
        });
        add(&mut paths, style.concat(), &(path + "\n"));
    }
    let paths = paths.iter().map(|(style, path)| {
        let path = path.trim();
        format!("<path fill=\"none\"{style} d=\"{path}\"/>\n")
    });
    let texts = texts.iter().map(|(style, texts)| {
        format!("<g font-family=\"sans-serif\" fill=\"#000000\" {style}>\n{texts}</g>\n")
    });
    let drawn: String = paths.chain(texts).collect();
    format!("{opening}\n{background}\n{drawn}</svg>\n")
}

/// Its words, and its numbers.
fn parts(svg: &str) -> (Vec<&str>, Vec<f64>) {
    let pieces = svg.split(|c: char| !c.is_ascii_alphanumeric() && !".-#".contains(c));
    let (numbers, words) = pieces.partition::<Vec<_>, _>(|piece| piece.parse::<f64>().is_ok());
    (words, numbers.iter().map(|x| x.parse().unwrap()).collect())
}

/// To a pixel: the last digit of a loss may be another one on another processor.
#[test]
fn the_figure_is_up_to_date() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/atlas.svg");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return draw(&file).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let drawn = dir.path().join("atlas.svg");
    draw(&drawn).unwrap();
    let [drawn, kept] = [drawn, file].map(|file| std::fs::read_to_string(file).unwrap());
    let ((words, numbers), (kept_words, kept_numbers)) = (parts(&drawn), parts(&kept));
    let hint = "docs/atlas.svg: run UPDATE_DOCS=1 cargo test --test suite atlas";
    assert!(words == kept_words, "{hint}");
    assert_eq!(numbers.len(), kept_numbers.len(), "{hint}");
    let far = numbers
        .iter()
        .zip(&kept_numbers)
        .find(|(a, b)| (*a - *b).abs() > 1.0);
    assert_eq!(far, None, "{hint}");
}
