//! Loads a folder and saves it again, so that other programs can be asked whether it is the same:
//!
//! ```console
//! cargo run -p finetune --example copy -- FROM TO
//! python examples/finetune/scripts/check_saved.py TO
//! ```

use std::error::Error;
use std::path::Path;

use burn::tensor::Device;
use finetune::{load, save};

fn main() -> Result<(), Box<dyn Error>> {
    let mut folders = std::env::args().skip(1);
    let (Some(from), Some(to)) = (folders.next(), folders.next()) else {
        return Err("copy FROM TO".into());
    };
    let decoder = load(Path::new(&from), &Device::default())?;
    save(&decoder, Path::new(&from), Path::new(&to))?;
    Ok(())
}
