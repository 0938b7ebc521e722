//! The guide: from the data you have to a run you can trust.
//!
//! 1. [`choosing`]: an objective for your data
//! 2. [`data`]: rows, the tokenizer, which tokens count
//! 3. [`training_loop`]: one step, accumulation, clipping, metrics
//! 4. [`reference`](mod@reference): frozen, LoRA, cached, moving
//! 5. [`first_batch`]: my loss is not ln 2
//! 6. [`memory`]: where it goes
//! 7. [`shared_prefixes`]: each prompt once
//! 8. [`scale`]: one device, one machine, several
//! 9. [`reproducibility`]: the same numbers again, and on resume
//! 10. [`reward_models`]: pairs, lists and ties of rewards, and what their scores are good for
//! 11. [`dpo_variants`]: MallowsPO, ε-DPO, MODPO, SafeDPO, SPIN, Step-DPO, iterative and online DPO
//! 12. [`token_importance`]: which tokens matter, and how much
//! 13. [`your_own_objective`]: six papers, three lines each
//! 14. [`beyond_text`]: denoisers, and models that see or hear
//! 15. [`coming_from_trl`]: its options, and where conventions differ

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
    first_batch: "first_batch.md",
    memory: "memory.md",
    shared_prefixes: "shared_prefixes.md",
    scale: "scale.md",
    reproducibility: "reproducibility.md",
    token_importance: "token_importance.md",
    your_own_objective: "your_own_objective.md",
    beyond_text: "beyond_text.md",
    coming_from_trl: "coming_from_trl.md",
    recipes: "recipes.md",
    questions: "questions.md",
    reward_models: "reward_models.md",
    dpo_variants: "dpo_variants.md",
}
