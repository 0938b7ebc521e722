//! All tests but the conformance suite, in one binary: every one of them links Burn.

#[path = "../support/mod.rs"]
mod support;

mod accumulation;
mod atlas;
mod bad_input;
mod batches;
mod cache;
mod catalogue;
mod config;
mod data;
mod demonstrations;
mod denoiser;
mod determinism;
mod discrepancy;
mod dual;
mod extremes;
mod files;
mod first_batch;
mod floors;
mod formulas;
mod gradients;
mod head;
mod laws;
mod log_probs;
mod metrics;
mod modifiers;
mod needs;
mod numerics;
mod objectives;
mod optimum;
mod packed;
mod problem;
mod promises;
mod published;
mod questions;
mod reads;
mod reducer;
mod reference;
mod rows;
mod samples;
mod scalar;
mod sentences;
mod subjects;
mod symbols;
mod train;
mod trl_rows;
mod turns;
mod two_models;
mod workers;

#[path = "../../examples/denoiser/likelihood.rs"]
mod denoiser_likelihood;
#[path = "../../examples/figure/mod.rs"]
mod figure;
#[path = "../../examples/toy/renderer.rs"]
mod renderer;
