#!/usr/bin/env python3
"""Seconds of TRL's own preprocessing of pairs, with two processes: scripts/rows_peers.py MODEL ROWS.

    cargo bench --bench data -- --tokenizer MODEL/tokenizer.json --rows 10000 --write rows.jsonl
    python3 -m venv peers && peers/bin/pip install torch==2.15.0 trl==1.16.0
    peers/bin/python scripts/rows_peers.py MODEL rows.jsonl

MODEL is a folder with a model and its tokenizer, such as one of scripts/random_llama.py. The clock runs
from the file to a `DPOTrainer` with its rows as ids; no step is taken.
"""

import sys
import tempfile
import time

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

model, rows = sys.argv[1:]
policy = AutoModelForCausalLM.from_pretrained(model)
tokenizer = AutoTokenizer.from_pretrained(model)
with tempfile.TemporaryDirectory() as folder:
    for processes in [1, 2]:
        start = time.perf_counter()
        data = load_dataset("json", data_files=rows, split="train", cache_dir=f"{folder}/{processes}")
        loaded = time.perf_counter() - start
        options = DPOConfig(
            output_dir=folder, dataset_num_proc=processes, max_length=4096, report_to="none", use_cpu=True
        )
        trainer = DPOTrainer(policy, args=options, train_dataset=data, processing_class=tokenizer)
        seconds = time.perf_counter() - start
        count = len(trainer.train_dataset)
        print(f"{processes} processes: {count} rows, {loaded:.1f} s to load, {seconds:.1f} s in all: "
              f"{count / seconds:.0f} rows a second")
