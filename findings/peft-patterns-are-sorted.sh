#!/usr/bin/env bash
# An adapter of PEFT 0.21.2 can have another strength after it was saved: `save_pretrained` sorts the keys
# of `alpha_pattern`, and a layer takes the first key that matches its name. Here the layer that was
# trained with α/r = 16 is loaded with 4, without a word, and the logits are others. `rank_pattern` is
# sorted in the same way; there the shapes do not fit, and loading is an error.
#
# Met where adapters are read: the file alone does not say what the trained model was.
#
# Installs PEFT and torch in a temporary folder (about 1 GB) and fails if this has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.15.0 peft==0.21.2 transformers==5.24.0
cd "$place"
HF_HUB_OFFLINE=1 venv/bin/python -W ignore - <<'PYTHON'
import json

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

LAYER = "base_model.model.model.layers.1.self_attn.q_proj"
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}


def base():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, num_key_value_heads=4, **sizes))


# The exception first, then the rule for the others: the order that a reader of the code expects.
pattern = {r"model\.layers\.1\.self_attn\.q_proj": 64, r"layers\.\d\.self_attn\.q_proj": 16}
config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], alpha_pattern=pattern)
trained = peft.get_peft_model(base(), config)
torch.manual_seed(1)
for name, weight in trained.named_parameters():
    if "lora_" in name:
        weight.data = 0.1 * torch.randn_like(weight)
trained.save_pretrained("adapter")
loaded = peft.PeftModel.from_pretrained(base(), "adapter")

ids = torch.arange(10)[None]
with torch.no_grad():
    change = (trained(ids).logits - loaded(ids).logits).abs().max().item()
scales = [model.get_submodule(LAYER).scaling["default"] for model in (trained, loaded)]
stored = list(json.load(open("adapter/adapter_config.json"))["alpha_pattern"])
print(f"peft {peft.__version__}: α/r of the layer {scales[0]} when trained, {scales[1]} when loaded;")
print(f"logits change by up to {change:.4f}; keys in the file: {stored}")
assert scales == [16.0, 4.0] and change > 1e-3 and stored == sorted(pattern), "this has changed"
PYTHON
