#!/usr/bin/env python3
"""Adapters of the tiny models as PEFT writes them, and what PEFT computes with them.

    python3 -m venv .venv && .venv/bin/pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2
    .venv/bin/python finetune/scripts/adapters.py

After goldens.py. Writes tests/data/adapter/<family>/: adapter_config.json and
adapter_model.safetensors of a random LoRA (rank 2, α = 4), and expected.json as goldens.py does, of
the adapted model. And tests/data/adapter/<kind>/ of the family llama: adapters that PEFT begins in another
way, or whose rank, scale or places are said in another way.
"""
import argparse
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


# The first pattern of the file that matches counts: "q_proj" also where a longer one would match.
KINDS = dict(
    gaussian=dict(init_lora_weights="gaussian"),
    orthogonal=dict(init_lora_weights="orthogonal"),
    eva=dict(init_lora_weights="eva", eva_config=peft.EvaConfig()),
    mica=dict(init_lora_weights="mica"),
    rslora=dict(use_rslora=True, r=3),
    patterns=dict(rank_pattern={"q_proj": 3, "layers.1.self_attn.q_proj": 4, r"model\.layers\.0\..*": 1},
                  alpha_pattern={"self_attn.v_proj": 8, "v_proj": 16, "layers.[1-9].self_attn.q_proj": 6.5}),
    layers=dict(layers_to_transform=[1], layers_pattern="layers"),
    regex=dict(target_modules=r".*\.layers\.\d+\.(?:mlp\.down_proj|self_attn\.[qk]_proj)",
               exclude_modules=["layers.0.self_attn.k_proj"]),
)


def write(base, folder, seed, **options):
    """An adapter of a tiny model, and what PEFT computes with it."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    ids = torch.tensor(json.loads((base / "expected.json").read_text())["ids"])
    before = log_probs(model, ids)
    options = dict(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=USUAL, task_type="CAUSAL_LM") | options
    model = peft.get_peft_model(model, peft.LoraConfig(**options)).eval()
    # Not the path on this machine.
    model.peft_config["default"].base_model_name_or_path = base.name
    with torch.no_grad():
        factors = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
        for parameter in factors:
            # B is 0 in a new adapter.
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    after = log_probs(model, ids)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text())
    # Python's sets have another order in each run.
    for key in ["target_modules", "exclude_modules"]:
        if isinstance(saved[key], list):
            saved[key].sort()
    # PEFT sorts its patterns when it writes them, and takes the first that matches when it reads them.
    saved.update({key: options[key] for key in ["rank_pattern", "alpha_pattern"] if key in options})
    path.write_text(json.dumps(saved, indent=2) + "\n")
    again = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    assert torch.equal(log_probs(peft.PeftModel.from_pretrained(again, folder).eval(), ids), after)
    expected = dict(peft=peft.__version__, transformers=transformers.__version__, torch=torch.__version__,
                    ids=ids.tolist(), log_probs=after.tolist())
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")
    print(f"{folder.name}: {len(factors)} factors, which move a token by {(after - before).abs().max():.2f} nats at most;",
          {file.name: file.stat().st_size for file in sorted(folder.iterdir())})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", action="store_true", help="only the kinds, not the families")
    if not parser.parse_args().kinds:
        for base in sorted(config.parent for config in DATA.glob("*/config.json")):
            targets = ALL if base.name == "qwen2" else USUAL
            write(base, OUT / base.name, len(base.name), target_modules=targets)
    for seed, (kind, options) in enumerate(KINDS.items()):
        write(DATA / "llama", OUT / kind, seed, **options)


main()
