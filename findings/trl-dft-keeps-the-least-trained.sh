#!/usr/bin/env bash
# SFTTrainer of TRL 1.16.0 with loss_type="dft" and load_best_model_at_end keeps the checkpoint that
# has learned least. DFT's value is the mean of -p ln p, which rises until p is 1/e. So from a model
# that knows little, eval_loss rises while the model learns, and the smallest one is the first. No
# warning is given. With loss_type="nll" on the same rows the last checkpoint is kept.
#
# Met when the two losses were compared step by step: the held-out loss cannot choose the weights.
#
# Installs torch, transformers and TRL in a temporary folder (about 6 GB) and fails if this has changed.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q torch==2.15.0 transformers==5.24.0 trl==1.16.0
HF_HOME="$place/hub" HF_HUB_OFFLINE=1 "$place/venv/bin/python" - "$place" <<'PYTHON'
import sys
import warnings

import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

disable_progress_bars()
transformers.utils.logging.set_verbosity_error()
warnings.simplefilter("ignore")
words = ["<pad>", "<eos>"] + [f"w{i}" for i in range(62)]
tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
rows = Dataset.from_list([{"prompt": f"w{i}", "completion": f" w{i + 1} w{i + 2} w{i + 3}"} for i in range(8)])


def run(loss):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, eos_token_id=1,
    )
    args = SFTConfig(
        f"{sys.argv[1]}/{loss}", loss_type=loss, max_steps=8, per_device_train_batch_size=8,
        per_device_eval_batch_size=8, learning_rate=3e-3, lr_scheduler_type="constant",
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        load_best_model_at_end=True, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True, seed=0,
    )
    trainer = SFTTrainer(
        LlamaForCausalLM(config), args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    best = int(trainer.state.best_model_checkpoint.rsplit("-", 1)[1])
    losses = [entry["eval_loss"] for entry in history]
    accuracy = [entry["eval_mean_token_accuracy"] for entry in history]
    print(f"trl {trl.__version__}, {loss}: eval_loss {losses}, accuracy {accuracy}, best: step {best}")
    return losses, accuracy, best


losses, accuracy, best = run("dft")
assert losses == sorted(losses) and losses[0] < losses[-1], "this has changed"
assert accuracy[-1] > accuracy[0], "the model did not learn"
assert best == 2, "this has changed"
losses, _, best = run("nll")
assert losses[-1] < losses[0] and best == 8, "this has changed"
PYTHON
