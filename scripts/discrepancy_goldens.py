"""What TRL and Liger make of two heads over one vocabulary: tests/data/two_models.json.

Needs torch, TRL and Liger (it ran with torch 2.15, TRL 1.16, liger-kernel 0.8.5):

    python scripts/discrepancy_goldens.py tests/data/two_models.json

Three peers on the same numbers: `generalized_jsd_loss` of TRL's GKD trainer and Liger's chunked JSD
in f64, TRL's chunked divergence in f32 as it always is. β = 0 is KL(teacher ‖ student), β = 1 is
KL(student ‖ teacher). Only numbers are written.
"""

import json
import sys

import torch
from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

ROWS, VOCAB, WIDTH, THEIR_WIDTH = 3, 9, 4, 6
BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
# Scale, softcap and temperature of the policy; the reference has the same temperature.
SHAPINGS = {"plain": (1.0, None, 1.0), "gemma2": (1.0, 3.0, 1.0), "tempered": (0.5, None, 0.7)}


def flat(tensor):
    return tensor.detach().flatten().tolist()


def logits(hidden, weight, bias, scale, cap):
    x = scale * (hidden @ weight.T + bias)
    return x if cap is None else cap * torch.tanh(x / cap)


def weights_of(values):
    return 1 + torch.arange(values.numel(), dtype=values.dtype) / 7


def trl(ours, theirs, beta, shaping):
    scale, cap, temperature = shaping
    of = logits(*ours, scale, cap)[None], logits(*theirs, 1.0, None)[None]
    terms = [
        GKDTrainer.generalized_jsd_loss(
            of[0][:, row : row + 1], of[1][:, row : row + 1], beta=beta, temperature=temperature,
            reduction="sum",
        )
        for row in range(ROWS)
    ]
    return torch.stack(terms)


def liger(ours, theirs, beta, shaping):
    scale, cap, temperature = shaping
    of = logits(*ours, scale, cap) / temperature, logits(*theirs, 1.0, None) / temperature
    loss = LigerFusedLinearJSDFunction.distillation_loss_fn
    return torch.stack([loss(of[0][row], of[1][row], beta) for row in range(ROWS)])


def trl_chunked(ours, theirs, beta, shaping):
    scale, cap, temperature = shaping
    return ChunkedDivergenceFunction.apply(*ours, *theirs, beta, temperature, scale, cap)[0]


PEERS = {
    "TRL, GKD": (trl, torch.float64),
    "Liger": (liger, torch.float64),
    "TRL, chunked": (trl_chunked, torch.float32),
}


def tensors(width, dtype):
    made = torch.randn(ROWS, width), 1.5 * torch.randn(VOCAB, width), torch.randn(VOCAB)
    return [x.to(dtype) for x in made]


models, cases = [], []
for seed, (name, shaping) in enumerate(SHAPINGS.items()):
    torch.manual_seed(seed)
    # Numbers of f32, so that both types hold the same.
    ours, theirs = tensors(WIDTH, torch.float32), tensors(THEIR_WIDTH, torch.float32)
    models.append({
        "name": name,
        "scale": shaping[0],
        "softcap": shaping[1],
        "temperature": shaping[2],
        "policy": [flat(x) for x in ours],
        "reference": [flat(x) for x in theirs],
    })
    for peer, (compute, dtype) in PEERS.items():
        for beta in BETAS:
            leaves = [x.to(dtype).requires_grad_() for x in ours]
            values = compute(leaves, [x.to(dtype) for x in theirs], beta, shaping)
            grads = torch.autograd.grad((values * weights_of(values)).sum(), leaves)
            cases.append({
                "model": name,
                "peer": peer,
                "beta": beta,
                "values": flat(values),
                "gradients": [flat(x) for x in grads],
            })
with open(sys.argv[1], "w") as file:
    json.dump({"models": models, "cases": cases}, file, separators=(",", ":"))
