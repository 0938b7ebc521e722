#!/usr/bin/env bash
# ORPOTrainer of TRL 1.16.0 turns all weights into NaN in one step once the model is sure of a completion:
# from a mean log-probability above -3e-8 on, whose exponential is 1 in float32, the loss is finite and its
# gradient NaN. The function that its comment calls numerically stable computes both branches of a
# `torch.where`, and the one that is not taken has the gradient 0 * inf. No warning is given, the optimiser
# takes the step, and the log says loss 0.0 from then on. Float32 gives the log-probability 0 to a token as
# soon as the others are 17 nats behind: a completion of a few such tokens, a label or a call, is enough.
#
# Met when the ORPO of several libraries was compared on log-probabilities next to 0.
#
# Installs torch, transformers and TRL in a temporary folder (about 6 GB) and fails if this has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.15.0 transformers==5.24.0 trl==1.16.0
HF_HOME="$place/hub" HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1 "$place/venv/bin/python" - "$place" <<'PYTHON'
import contextlib
import io
import math
import sys
import warnings

import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

disable_progress_bars()
transformers.utils.logging.set_verbosity_error()
warnings.simplefilter("ignore")
words = ["<pad>", "<eos>", "<bos>"] + [f"w{i}" for i in range(61)]
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
)
# The answer is always the same word.
rows = Dataset.from_list([{"prompt": f"w{i}", "chosen": " w1", "rejected": " w2"} for i in range(3, 11)])
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, pad_token_id=0, eos_token_id=1, bos_token_id=2,
)
torch.manual_seed(0)
model = LlamaForCausalLM(config)


def train(steps, learning_rate):
    args = ORPOConfig(
        sys.argv[1], max_steps=steps, per_device_train_batch_size=8, learning_rate=learning_rate,
        lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        bf16=False, disable_tqdm=True, seed=0, max_length=16, remove_unused_columns=False,
    )
    trainer = ORPOTrainer(model, args, train_dataset=rows, processing_class=tokenizer)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train()
    return [entry for entry in trainer.state.log_history if "grad_norm" in entry]


def is_finite():
    return all(weight.isfinite().all() for weight in model.parameters())


learned = train(60, 1e-2)[-1]
print("learned:", {key: learned[key] for key in ["loss", "grad_norm", "logps/chosen"]})
assert is_finite() and math.isfinite(float(learned["grad_norm"]))
# The same answers, surer.
with torch.no_grad():
    model.lm_head.weight.mul_(8)
first, second = train(2, 1e-5)
for entry in first, second:
    print(f"trl {trl.__version__}:", {key: entry[key] for key in ["loss", "grad_norm", "logps/chosen"]})
assert -3e-8 < float(first["logps/chosen"]) <= 0, "the model is not sure"
assert math.isfinite(float(first["loss"])) and math.isnan(float(first["grad_norm"])), "this has changed"
assert not is_finite() and float(second["loss"]) == 0.0, "this has changed"
PYTHON
