"""What other code makes of heads that scale or cap their logits: tests/data/heads.json.

Needs torch, transformers, TRL and cut-cross-entropy (it ran with torch 2.15, transformers 5.23,
TRL 1.16, cut-cross-entropy 25.1):

    python scripts/head_goldens.py tests/data/heads.json

Tiny random models of transformers, in f64: the hidden states before the head, the head, and what the
model says of its tokens. Then TRL's chunked head and cut-cross-entropy's softcap on the same
numbers. Only numbers are written.
"""

import json
import sys

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)
from trl.trainer.utils import _ChunkedLogProbFunction

SIZES = {
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**SIZES, head_dim=4, final_logit_softcapping=3.0)),
    "cohere": (CohereForCausalLM, CohereConfig(**SIZES, logit_scale=0.3)),
    "granite": (GraniteForCausalLM, GraniteConfig(**SIZES, logits_scaling=2.5)),
}


def flat(tensor):
    return tensor.detach().flatten().tolist()


def log_probs(logits, tokens):
    return torch.log_softmax(logits[:, :-1], -1).gather(2, tokens[:, 1:, None])[..., 0]


def case(name, kind, config):
    torch.manual_seed(len(name))
    model = kind(config).double().eval()
    head = model.get_output_embeddings()
    with torch.no_grad():
        # Logits of a few units, so that the cap bends them.
        head.weight.normal_(0, 1.5)
    tokens = torch.randint(3, SIZES["vocab_size"], (2, 6))
    hidden = model.base_model(tokens).last_hidden_state.detach().requires_grad_()

    scale = getattr(config, "logit_scale", None) or 1 / getattr(config, "logits_scaling", 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    # The model's own logits, and its gradients of Σ c·log π through the head alone.
    own = log_probs(model(tokens).logits, tokens)
    logits = scale * (hidden @ head.weight.T)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    ours = log_probs(logits, tokens)
    assert torch.allclose(own, ours, atol=1e-12), name
    weights = 1 + torch.arange(ours.numel(), dtype=torch.float64).reshape(ours.shape) / 7
    d_hidden, d_weight = torch.autograd.grad((ours * weights).sum(), [hidden, head.weight])

    out = {
        "model": name,
        "scale": scale,
        "softcap": cap,
        "temperature": 1.0,
        "tokens": tokens.tolist(),
        "hidden": flat(hidden),
        "weight": flat(head.weight),
        "log_probs": flat(own),
        "grad_hidden": flat(d_hidden),
        "grad_weight": flat(d_weight),
    }
    return out, hidden, head.weight, tokens


def trl(base, hidden, weight, tokens, temperature):
    fields = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
    rows = hidden[:, :-1].reshape(-1, hidden.shape[-1]).detach().requires_grad_()
    matrix = weight.detach().requires_grad_()
    found = _ChunkedLogProbFunction.apply(
        rows, matrix, None, tokens[:, 1:].reshape(-1), temperature, 256,
        base["softcap"], base["scale"], fields,
    )
    weights = 1 + torch.arange(found[0].numel(), dtype=found[0].dtype) / 7
    d_hidden, d_weight = torch.autograd.grad((found[0] * weights).sum(), [rows, matrix])
    d_hidden = torch.cat([d_hidden.reshape(2, 5, -1), torch.zeros(2, 1, d_hidden.shape[-1])], 1)
    names = ["log_probs", "entropy", "collisions", "mean_logits", "top1"]
    numbers = {key: flat(value.double()) for key, value in zip(names, found)}
    return {
        **base,
        **numbers,
        "model": f"trl {base['model']}",
        "temperature": temperature,
        "grad_hidden": flat(d_hidden),
        "grad_weight": flat(d_weight),
    }


def cce(base, hidden, weight, tokens):
    from cut_cross_entropy import linear_cross_entropy

    rows = hidden.detach().float().requires_grad_()
    matrix = weight.detach().float().requires_grad_()
    nll = linear_cross_entropy(
        rows, matrix, tokens, softcap=base["softcap"], reduction="none", shift=True,
        impl="torch_compile",
    )
    weights = 1 + torch.arange(nll.numel(), dtype=nll.dtype).reshape(nll.shape) / 7
    d_hidden, d_weight = torch.autograd.grad((-nll * weights).sum(), [rows, matrix])
    return {
        **base,
        "model": "cut-cross-entropy gemma2, f32",
        "log_probs": flat(-nll),
        "grad_hidden": flat(d_hidden),
        "grad_weight": flat(d_weight),
    }


cases = []
for name, (kind, config) in MODELS.items():
    base, hidden, weight, tokens = case(name, kind, config)
    cases.append(base)
    for temperature in (1.0, 0.7):
        cases.append(trl(base, hidden, weight, tokens, temperature))
    if name == "gemma2":
        cases.append(cce(base, hidden, weight, tokens))
with open(sys.argv[1], "w") as file:
    json.dump({"cases": cases}, file, separators=(",", ":"))
