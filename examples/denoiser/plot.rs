//! Samples of each model as an SVG figure, a panel each.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::figure::scale_with_the_page;
use crate::model::Point;

/// Draws the samples, with names and what to write beside them.
pub fn draw(path: &Path, panels: &[(&str, String, &[Point])]) -> Result<(), Box<dyn Error>> {
    let size = (320 * u32::try_from(panels.len())?, 330);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let areas = root.split_evenly((1, panels.len()));
    for ((name, caption, points), area) in panels.iter().zip(&areas) {
        let mut chart = ChartBuilder::on(area)
            .caption(format!("{name}: {caption}"), ("sans-serif", 15))
            .margin(8)
            .x_label_area_size(20)
            .y_label_area_size(28)
            .build_cartesian_2d(-3.0_f32..3.0, -3.0_f32..3.0)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_labels(5)
            .y_labels(5)
            .draw()?;
        let color = RGBColor(0, 114, 178).mix(0.5).filled();
        chart.draw_series(points.iter().map(|&[x, y]| Circle::new((x, y), 2, color)))?;
    }
    root.present()?;
    scale_with_the_page(path, size)?;
    Ok(())
}
