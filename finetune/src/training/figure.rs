//! The metrics of a run as a figure: a panel for each, training and held out.

use std::fs;
use std::path::Path;

use plotters::prelude::*;
use serde_json::Value;

use crate::failure::Failure;
use crate::files::whole::write_whole;

const WIDTH: u32 = 1000;
const HEIGHT: u32 = 300;

/// A line of a panel.
type Points = Vec<(f64, f64)>;

/// Its name, and the lines of training and of held-out rows.
type Panel = (&'static str, Points, Points);

/// Draws loss, accuracy and margin, or what SFT has instead of them, from the lines that a run has written, as far as they are there.
/// The figure appears when all of it is drawn.
///
/// # Errors
///
/// The lines cannot be read, or the figure cannot be written.
pub fn draw_metrics(metrics: &Path, figure: &Path) -> Result<(), Failure> {
    let text = fs::read_to_string(metrics)?;
    let lines = text.lines().map(serde_json::from_str);
    let lines: Vec<Value> = lines.collect::<Result<_, _>>()?;
    let points = |of: &str, key: &str| -> Points {
        let point = |line: &Value| Some((line["step"].as_f64()?, line[of][key].as_f64()?));
        lines.iter().filter_map(point).collect()
    };
    let panels: Vec<Panel> = [
        ("loss", "loss"),
        ("reward accuracy", "rewards/accuracies"),
        ("margin of rewards", "rewards/margins"),
        ("token accuracy", "mean_token_accuracy"),
        ("perplexity", "perplexity"),
    ]
    .into_iter()
    .map(|(name, key)| (name, points("train", key), points("held_out", key)))
    .filter(|(_, train, held_out)| !(train.is_empty() && held_out.is_empty()))
    .collect();
    write_whole(figure, |figure| draw_panels(figure, &panels))
}

fn draw_panels(figure: &Path, panels: &[Panel]) -> Result<(), Failure> {
    let root = SVGBackend::new(figure, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let areas = root.split_evenly((1, panels.len().max(1)));
    for (area, (name, train, held_out)) in areas.iter().zip(panels) {
        let all = || train.iter().chain(held_out);
        let range = |of: fn(&(f64, f64)) -> f64| {
            let least = all().map(of).fold(f64::INFINITY, f64::min);
            let most = all().map(of).fold(f64::NEG_INFINITY, f64::max);
            let space = 0.05 * (most - least).max(1e-3);
            least - space..most + space
        };
        let mut chart = ChartBuilder::on(area)
            .caption(*name, ("sans-serif", 16))
            .margin(8)
            .x_label_area_size(32)
            .y_label_area_size(48)
            .build_cartesian_2d(range(|p| p.0), range(|p| p.1))?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("step")
            .x_labels(5)
            .light_line_style(WHITE)
            .draw()?;
        let (pale, dark) = (RGBColor(0, 114, 178).mix(0.35), RGBColor(213, 94, 0));
        let lines = [
            ("training", train.clone(), pale),
            ("held out", held_out.clone(), dark.to_rgba()),
        ];
        for (label, line, color) in lines {
            let key = move |(x, y)| PathElement::new([(x, y), (x + 14, y)], color.stroke_width(2));
            let line = LineSeries::new(line, color.stroke_width(2));
            chart.draw_series(line)?.label(label).legend(key);
        }
        chart.configure_series_labels().draw()?;
    }
    root.present()?;
    drop(root);
    // Without its fixed size, an SVG scales with the page that shows it.
    let svg = fs::read_to_string(figure)?;
    let fixed = format!(r#" width="{WIDTH}" height="{HEIGHT}""#);
    fs::write(figure, svg.replacen(&fixed, "", 1))?;
    Ok(())
}
