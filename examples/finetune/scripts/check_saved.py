#!/usr/bin/env python3
"""Whether transformers gives a saved folder the log-probabilities that are expected of it.

    .venv/bin/python examples/finetune/scripts/check_saved.py FOLDER...

A folder holds `expected.json` (goldens.py): ids, and the log-probability of each token but the first.
"""
import json
import pathlib
import sys

import torch
import transformers

for name in sys.argv[1:]:
    folder = pathlib.Path(name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert model.dtype == torch.float32, model.dtype
    expected = json.loads((folder / "expected.json").read_text())
    ids = torch.tensor(expected["ids"])
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double()
    ours = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    worst = (ours - torch.tensor(expected["log_probs"])).abs().max().item()
    print(f"{name}: off by {worst:.1e} nats a token at most")
    assert worst < 1e-4
