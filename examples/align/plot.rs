//! The curves of a run as one SVG figure: four measures, a line per objective.

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

/// Draws all curves into `path`.
pub fn draw(path: &Path, title: &str, curves: &[Curve]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (960, 640)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 20))?;
    let panels: [Panel; 4] = [
        ("score", |p| p.score),
        ("reward accuracy", |p| p.accuracy),
        ("margin ρ_w − ρ_l, nats", |p| p.margin),
        ("KL to the reference, nats", |p| p.kl),
    ];
    for (area, (name, value)) in root.split_evenly((2, 2)).iter().zip(panels) {
        let points = || curves.iter().flat_map(|(_, curve)| curve);
        let steps = points().map(|p| p.step).max().unwrap_or(1);
        let (low, high) = points()
            .map(value)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
                (l.min(v), h.max(v))
            });
        let space = 0.05 * (high - low).max(1e-3);
        let mut chart = ChartBuilder::on(area)
            .caption(name, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(32)
            .y_label_area_size(48)
            .build_cartesian_2d(0..steps, low - space..high + space)?;
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
