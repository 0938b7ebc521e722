#!/usr/bin/env bash
# Burn 0.22.1: `ModuleRecord::load` reads the header of a file alone. The numbers are read when the record
# is applied, from the name again: if another checkpoint has taken this name meanwhile, its numbers come,
# without an error. `ModuleRecord::from_bytes` of the file's bytes gives those of the file that was opened.
#
# Met in a run of several processes: one of them wrote the next checkpoint over the one that another was
# going on from.
#
# Builds Burn in a temporary folder (some minutes, 1 GB) and fails if this has changed. Needs cargo.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "records"
version = "0.0.0"
edition = "2024"

[dependencies]
burn = { version = "=0.22.1", default-features = false, features = ["std", "flex"] }
TOML
cat >src/main.rs <<'RUST'
use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{Initializer, Linear, LinearConfig};
use burn::store::ModuleRecord;
use burn::tensor::{Bytes, Device, Tensor};

fn model(value: f64) -> Linear {
    let config = LinearConfig::new(2, 2).with_initializer(Initializer::Constant { value });
    config.init(&Device::flex())
}

struct First(Option<f32>);

impl ModuleVisitor for First {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.get_or_insert(param.val().flatten::<1>(0, D - 1).slice(0..1).into_scalar());
    }
}

fn loaded(record: ModuleRecord) -> f32 {
    let mut first = First(None);
    model(0.0).load_record(record).visit(&mut first);
    first.0.expect("a parameter")
}

fn main() {
    // The ids of the parameters are those of one model.
    let one = model(1.0);
    let two = one.clone().load_record(model(2.0).into_record().allow_partial(true));
    one.clone().into_record().save("model.bpk").unwrap();
    two.into_record().save("next.bpk").unwrap();
    let later = ModuleRecord::load("model.bpk").unwrap().allow_partial(true);
    let bytes = Bytes::from_bytes_vec(std::fs::read("model.bpk").unwrap());
    let at_once = ModuleRecord::from_bytes(bytes).unwrap().allow_partial(true);
    std::fs::rename("next.bpk", "model.bpk").unwrap();
    let found = [loaded(later), loaded(at_once)];
    println!("Burn 0.22.1: a file of ones, then one of twos under its name: load gives {}, from_bytes {}", found[0], found[1]);
    assert_eq!(found, [2.0, 1.0], "this has changed");
}
RUST
cargo run --quiet
