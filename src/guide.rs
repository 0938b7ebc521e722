//! The guide: from the data you have to a run you can trust.
//!
//! **The first run.** If you know TRL, read [`coming_from_trl`] beside these.
//!
//! 1. [`choosing`]: an objective for your data
//! 2. [`data`]: rows, the tokenizer, which tokens count
//! 3. [`stage_one`]: SFT, which a preference objective starts from
//! 4. [`training_loop`]: one step, its parts, clipping, metrics
//! 5. [`first_batch`]: my loss is not ln 2
//! 6. [`reference`](mod@reference): frozen, LoRA, cached, moving
//! 7. [`recipes`]: save and resume, lists, unpaired completions, adapters, metrics, evaluation, in
//!    fifteen lines each
//! 8. [`questions`]: surprising logs and questions of others, with our answers
//!
//! **Larger and faster.**
//!
//! 9. [`memory`]: what takes it, and how to need less
//! 10. [`shared_prefixes`]: each prompt once
//! 11. [`scale`]: one device, one machine, several
//! 12. [`reproducibility`]: the same numbers again, and on resume
//!
//! **Further objectives.**
//!
//! 13. [`reward_models`]: pairs, lists and ties of rewards, and the use of their scores
//! 14. [`policy_gradients`]: samples of the policy itself, with rewards; when this, when pairs
//! 15. [`dpo_variants`]: MallowsPO, ε-DPO, MODPO, SafeDPO, SPIN, Step-DPO, iterative and online DPO
//! 16. [`token_importance`]: a weight for every token
//! 17. [`distillation`]: another model as the teacher, or the policy itself
//! 18. [`your_own_objective`]: six papers, three lines each
//! 19. [`beyond_text`]: denoisers, and models that see or hear
//!
//! **For reference.**
//!
//! 20. [`coming_from_trl`]: its options, and where conventions differ

macro_rules! chapters {
    ($($name:ident: $($file:literal)+,)*) => {
        $(
            $(#[doc = include_str!(concat!("../docs/", $file))])+
            pub mod $name {}
        )*
    };
}

chapters! {
    choosing: "guide/choosing.md",
    data: "guide/data.md",
    stage_one: "guide/stage_one.md",
    training_loop: "guide/training_loop.md",
    first_batch: "guide/first_batch.md",
    reference: "guide/reference.md",
    recipes: "guide/recipes.md",
    // Its last question is about the figure.
    questions: "guide/questions.md" "accumulation.svg",
    memory: "guide/memory.md",
    shared_prefixes: "guide/shared_prefixes.md",
    scale: "guide/scale.md",
    reproducibility: "guide/reproducibility.md",
    reward_models: "guide/reward_models.md",
    policy_gradients: "guide/policy_gradients.md",
    dpo_variants: "guide/dpo_variants.md",
    token_importance: "guide/token_importance.md",
    distillation: "guide/distillation.md",
    your_own_objective: "guide/your_own_objective.md",
    beyond_text: "guide/beyond_text.md",
    coming_from_trl: "guide/coming_from_trl.md",
}
