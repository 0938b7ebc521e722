#!/usr/bin/env python3
"""Whether PEFT gives a saved adapter the log-probabilities that are expected of it.

    .venv/bin/python examples/finetune/scripts/check_adapter.py FOLDER BASE

BASE is the model's folder. FOLDER holds `adapter_config.json`, `adapter_model.safetensors` and
`expected.json` (adapters.py): ids, and the log-probability of each token but the first.
"""
import json
import pathlib
import sys

import peft
import torch
import transformers
from safetensors import safe_open

folder, base = map(pathlib.Path, sys.argv[1:])
model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
assert model.dtype == torch.float32, model.dtype
model = peft.PeftModel.from_pretrained(model, folder).eval()
# PEFT only warns of factors that are missing or that it has no place for.
with safe_open(folder / "adapter_model.safetensors", "pt") as file:
    stored = set(file.keys())
loaded = set(peft.get_peft_model_state_dict(model))
assert stored == loaded, stored ^ loaded
expected = json.loads((folder / "expected.json").read_text())
ids = torch.tensor(expected["ids"])
with torch.no_grad():
    logits = model(input_ids=ids).logits.double()
ours = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
worst = (ours - torch.tensor(expected["log_probs"])).abs().max().item()
print(f"{folder}: off by {worst:.1e} nats a token at most")
assert worst < 1e-4
