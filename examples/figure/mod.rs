//! What the examples' figures have in common.

use std::io;
use std::path::Path;

/// Takes the fixed size of an SVG away: it then scales with the page that shows it.
pub fn scale_with_the_page(path: &Path, (width, height): (u32, u32)) -> io::Result<()> {
    let svg = std::fs::read_to_string(path)?;
    let fixed = format!(r#" width="{width}" height="{height}""#);
    std::fs::write(path, svg.replacen(&fixed, "", 1))
}
