//! All tests but the conformance suite, in one binary: every one of them links Burn.

mod support;

#[path = "suite/accumulation.rs"]
mod accumulation;
#[path = "suite/atlas.rs"]
mod atlas;
#[path = "suite/bad_input.rs"]
mod bad_input;
#[path = "suite/batches.rs"]
mod batches;
#[path = "suite/cache.rs"]
mod cache;
#[path = "suite/catalogue.rs"]
mod catalogue;
#[path = "suite/chat_template.rs"]
mod chat_template;
#[path = "suite/config.rs"]
mod config;
#[path = "suite/data.rs"]
mod data;
#[path = "suite/denoiser.rs"]
mod denoiser;
#[path = "suite/determinism.rs"]
mod determinism;
#[path = "suite/extremes.rs"]
mod extremes;
#[path = "suite/first_batch.rs"]
mod first_batch;
#[path = "suite/floors.rs"]
mod floors;
#[path = "suite/gradients.rs"]
mod gradients;
#[path = "suite/head.rs"]
mod head;
#[path = "suite/laws.rs"]
mod laws;
#[path = "suite/log_probs.rs"]
mod log_probs;
#[path = "suite/metrics.rs"]
mod metrics;
#[path = "suite/modifiers.rs"]
mod modifiers;
#[path = "suite/numerics.rs"]
mod numerics;
#[path = "suite/objectives.rs"]
mod objectives;
#[path = "suite/optimum.rs"]
mod optimum;
#[path = "suite/packed.rs"]
mod packed;
#[path = "suite/problem.rs"]
mod problem;
#[path = "suite/questions.rs"]
mod questions;
#[path = "suite/reducer.rs"]
mod reducer;
#[path = "suite/reference.rs"]
mod reference;
#[path = "suite/rows.rs"]
mod rows;
#[path = "suite/scalar.rs"]
mod scalar;
#[path = "suite/subjects.rs"]
mod subjects;
#[path = "suite/symbols.rs"]
mod symbols;
#[path = "suite/train.rs"]
mod train;
#[path = "suite/trl_rows.rs"]
mod trl_rows;
#[path = "suite/turns.rs"]
mod turns;
#[path = "suite/workers.rs"]
mod workers;

#[path = "../examples/denoiser/likelihood.rs"]
mod denoiser_likelihood;
#[path = "../examples/figure/mod.rs"]
mod figure;
#[path = "../examples/toy/renderer.rs"]
mod renderer;
#[path = "../examples/chat_template/template.rs"]
mod template;
