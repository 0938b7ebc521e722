//! `finetune/tests/support/fuzz.rs` says what has to hold.

#![no_main]

#[path = "../../finetune/tests/support/fuzz.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::target("shard_index")(data));
