//! The guide: from the data you have to a run you can trust.
//!
//! 1. [`choosing`]: an objective for your data
//! 2. [`training_loop`]: one step, accumulation, clipping, metrics
//! 3. [`reference`](mod@reference): frozen, LoRA, cached, moving
//! 4. [`first_batch`]: my loss is not ln 2
//! 5. [`memory`]: where it goes
//! 6. [`scale`]: one device, one machine, several
//! 7. [`reproducibility`]: the same numbers again, and on resume
//! 8. [`coming_from_trl`]: its options, and where conventions differ

macro_rules! chapters {
    ($($name:ident: $file:literal,)*) => {
        $(
            #[doc = include_str!(concat!("../docs/guide/", $file))]
            pub mod $name {}
        )*
    };
}

chapters! {
    choosing: "choosing.md",
    training_loop: "training_loop.md",
    reference: "reference.md",
    first_batch: "first_batch.md",
    memory: "memory.md",
    scale: "scale.md",
    reproducibility: "reproducibility.md",
    coming_from_trl: "coming_from_trl.md",
}
