#!/usr/bin/env python3
"""Tiny random models of every family, and what transformers computes with them.

    python3 -m venv .venv && .venv/bin/pip install torch==2.15.0 transformers==5.23.0
    .venv/bin/python finetune/scripts/goldens.py

Writes tests/data/<family>/: config.json and model.safetensors as `save_pretrained` does (the second
Llama in shards), and expected.json: token ids and the log-probability of each token but the first,
in f32 with eager attention.
"""
import json
import pathlib
import shutil

import torch
import transformers

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data"
TIME = 24
SMALL = dict(
    vocab_size=40,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=50.0,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
FAMILIES = {
    "llama": ("Llama", dict(tie_word_embeddings=True), None),
    "llama3": ("Llama", dict(rope_parameters=LLAMA3, head_dim=8), "20KB"),
    "mistral": ("Mistral", dict(sliding_window=32), None),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True), None),
    "qwen3": ("Qwen3", dict(head_dim=8), None),
    "gemma2": ("Gemma2", dict(head_dim=8, query_pre_attn_scalar=16, sliding_window=32,
                              attn_logit_softcapping=2.0, final_logit_softcapping=3.0), None),
}


def main():
    for name, (family, options, shard) in FAMILIES.items():
        torch.manual_seed(len(name))
        config = getattr(transformers, f"{family}Config")(**SMALL, **options)
        config._attn_implementation = "eager"
        model = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                # Norms and biases that do something, and attention that is not flat.
                noise = torch.randn_like(parameter)
                parameter.copy_(noise * 0.3 + (parameter if parameter.dim() == 1 else 0))
            ids = torch.randint(0, 40, (2, TIME))
            logits = model(input_ids=ids).logits.double()
            chosen = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        folder = OUT / name
        shutil.rmtree(folder, ignore_errors=True)
        options = dict(max_shard_size=shard) if shard else {}
        model.save_pretrained(folder, **options)
        (folder / "generation_config.json").unlink(missing_ok=True)
        expected = dict(transformers=transformers.__version__, torch=torch.__version__,
                        ids=ids.tolist(), log_probs=chosen.tolist())
        (folder / "expected.json").write_text(json.dumps(expected))
        print(name, sum(f.stat().st_size for f in folder.iterdir()), "bytes",
              sorted(f.name for f in folder.iterdir()))


main()
