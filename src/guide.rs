//! The guide: from the data you have to a run you can trust.
//!
//! 1. [`choosing`]: an objective for your data
//! 2. [`data`]: rows, the tokenizer, which tokens count
//! 3. [`training_loop`]: one step, accumulation, clipping, metrics
//! 4. [`reference`](mod@reference): frozen, LoRA, cached, moving
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
    data: "data.md",
    training_loop: "training_loop.md",
    reference: "reference.md",
    memory: "memory.md",
    scale: "scale.md",
    reproducibility: "reproducibility.md",
    coming_from_trl: "coming_from_trl.md",
}
