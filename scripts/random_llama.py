#!/usr/bin/env python3
"""A Llama of 17.7 million random weights with the tokenizer of a GGUF file: scripts/random_llama.py GGUF FOLDER."""

import os
import sys

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

gguf, out = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(os.path.dirname(gguf), gguf_file=os.path.basename(gguf))
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=49152,
    hidden_size=256,
    intermediate_size=768,
    num_hidden_layers=6,
    num_attention_heads=4,
    tie_word_embeddings=True,
    max_position_embeddings=512,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=2,
)
LlamaForCausalLM(config).save_pretrained(out)
tokenizer.save_pretrained(out)
