//! The curves of a run as two SVG figures: four measures with a line per objective, and what each
//! objective did to the log-probabilities of chosen and rejected completions.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::report::Point;

type Curve = (&'static str, Vec<Point>);

/// A measure of a point, and what to write above its panel.
type Panel = (&'static str, fn(&Point) -> f64);

/// Colours that stay apart for colour-blind readers (Okabe and Ito).
const COLORS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
];

/// A range with a little space around it.
fn spread(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    let space = 0.05 * (high - low).max(1e-3);
    low - space..high + space
}

/// A panel per objective: how far the log-probabilities moved from the reference's.
pub fn draw_log_probs(path: &Path, title: &str, curves: &[Curve]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (1200, 300)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 18))?;
    let points = || curves.iter().flat_map(|(_, curve)| curve);
    let range = spread(points().flat_map(|p| [p.chosen, p.rejected]));
    let steps = points().map(|p| p.step).max().unwrap_or(1);
    for (area, (name, curve)) in root.split_evenly((1, curves.len())).iter().zip(curves) {
        let mut chart = ChartBuilder::on(area)
            .caption(name, ("sans-serif", 16))
            .margin(8)
            .x_label_area_size(32)
            .y_label_area_size(36)
            .build_cartesian_2d(0..steps, range.clone())?;
        chart
            .configure_mesh()
            .x_desc("step")
            .x_labels(5)
            .light_line_style(WHITE)
            .draw()?;
        let lines: [Panel; 2] = [("chosen", |p| p.chosen), ("rejected", |p| p.rejected)];
        for ((label, value), color) in lines.into_iter().zip([COLORS[0], COLORS[4]]) {
            let line = curve.iter().map(|p| (p.step, value(p)));
            let key = move |(x, y)| PathElement::new([(x, y), (x + 14, y)], color.stroke_width(2));
            chart
                .draw_series(LineSeries::new(line, color.stroke_width(2)))?
                .label(label)
                .legend(key);
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerLeft)
            .background_style(WHITE.mix(0.8))
            .draw()?;
    }
    root.present()?;
    Ok(())
}

/// Draws all curves into `path`.
pub fn draw(path: &Path, title: &str, curves: &[Curve]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (960, 640)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 20))?;
    let panels: [Panel; 4] = [
        ("score", |p| p.score),
        ("reward accuracy", |p| p.accuracy),
        ("margin ρ_w − ρ_l, nats", Point::margin),
        ("KL to the reference, nats", |p| p.kl),
    ];
    for (area, (name, value)) in root.split_evenly((2, 2)).iter().zip(panels) {
        let points = || curves.iter().flat_map(|(_, curve)| curve);
        let steps = points().map(|p| p.step).max().unwrap_or(1);
        let range = spread(points().map(value));
        let mut chart = ChartBuilder::on(area)
            .caption(name, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(48)
            .build_cartesian_2d(0..steps, range)?;
        chart
            .configure_mesh()
            .x_desc("step")
            .light_line_style(WHITE)
            .draw()?;
        for ((name, curve), color) in curves.iter().zip(COLORS.iter().cycle()) {
            let line = LineSeries::new(
                curve.iter().map(|p| (p.step, value(p))),
                color.stroke_width(2),
            );
            let key = move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2));
            chart.draw_series(line)?.label(*name).legend(key);
        }
        if name == "reward accuracy" {
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::LowerRight)
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.3))
                .draw()?;
        }
    }
    root.present()?;
    Ok(())
}
