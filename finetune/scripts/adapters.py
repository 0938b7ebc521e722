#!/usr/bin/env python3
"""Adapters of the tiny models as PEFT writes them, and what PEFT computes with them.

    python3 -m venv .venv && .venv/bin/pip install torch==2.15.0 transformers==5.23.0 peft==0.21.2
    .venv/bin/python finetune/scripts/adapters.py

After goldens.py. Writes tests/data/adapter/<family>/: adapter_config.json and
adapter_model.safetensors of a random LoRA (rank 2, α = 4), and expected.json as goldens.py does, of
the adapted model.
"""
import json
import pathlib
import shutil

import peft
import torch
import transformers

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data"
OUT = DATA / "adapter"
USUAL = ["q_proj", "v_proj"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def log_probs(model, ids):
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double()
    return logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]


def main():
    for base in sorted(config.parent for config in DATA.glob("*/config.json")):
        torch.manual_seed(len(base.name))
        model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
        ids = torch.tensor(json.loads((base / "expected.json").read_text())["ids"])
        before = log_probs(model, ids)
        targets = ALL if base.name == "qwen2" else USUAL
        config = peft.LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config).eval()
        # Not the path on this machine.
        model.peft_config["default"].base_model_name_or_path = base.name
        with torch.no_grad():
            factors = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
            for parameter in factors:
                # B is 0 in a new adapter.
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        after = log_probs(model, ids)
        folder = OUT / base.name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "README.md").unlink()
        # Python's sets have another order in each run.
        path = folder / "adapter_config.json"
        saved = json.loads(path.read_text())
        saved["target_modules"].sort()
        path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n")
        expected = dict(peft=peft.__version__, transformers=transformers.__version__, torch=torch.__version__,
                        ids=ids.tolist(), log_probs=after.tolist())
        (folder / "expected.json").write_text(json.dumps(expected) + "\n")
        print(f"{base.name}: {len(factors)} factors, which move a token by {(after - before).abs().max():.2f} nats at most;",
              {file.name: file.stat().st_size for file in sorted(folder.iterdir())})


main()
