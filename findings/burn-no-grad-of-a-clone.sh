#!/usr/bin/env bash
# Burn 0.22.1: `model.clone().no_grad()` freezes the original as well, if none of its weights was read
# before. A weight is drawn when it is first read, and until then clones share what it will be. Nothing says
# so: the optimiser finds no gradient, and the policy stays where it is. After one read of the weight the
# same lines freeze the clone alone.
#
# Met where a reference is made of a policy that was just initialised.
#
# Builds Burn in a temporary folder (some minutes, 1 GB) and fails if this has changed. Needs cargo.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "clones"
version = "0.0.0"
edition = "2024"

[dependencies]
burn = { version = "=0.22.1", default-features = false, features = ["std", "autodiff", "flex"] }
TOML
cat >src/main.rs <<'RUST'
use burn::module::Module;
use burn::nn::LinearConfig;
use burn::tensor::{Device, Tensor};

fn main() {
    let device = Device::flex().autodiff();
    let trains = [false, true].map(|read_before| {
        let policy = LinearConfig::new(2, 2).init(&device);
        if read_before {
            let _ = policy.weight.val();
        }
        let _reference = policy.clone().no_grad();
        let loss = policy.forward(Tensor::<2>::ones([1, 2], &device)).sum();
        let trains = policy.weight.val().is_require_grad();
        let has_gradient = trains && policy.weight.val().grad(&loss.backward()).is_some();
        assert_eq!(trains, has_gradient);
        trains
    });
    println!("Burn 0.22.1: the policy trains after its clone was frozen: {}, or {} if it was read before", trains[0], trains[1]);
    assert_eq!(trains, [false, true], "this has changed");
}
RUST
cargo run --quiet
