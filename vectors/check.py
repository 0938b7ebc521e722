#!/usr/bin/env python3
"""Runs other libraries on the vectors of this folder and prints, for each objective and library:
same, differs by a named convention, or wrong with the number.

    python3 check.py                     # what is installed: TRL, Liger
    python3 check.py --clones DIR        # and authors' code, from clones DIR/OWNER+NAME or fetched into DIR

Needs torch. TRL and Liger are the installed packages; `pip install trl==1.16.0 liger-kernel==0.8.5` has
what README.md's table was made with. Authors' code is read at the commits below, and only the named
function is run. With jsonschema installed the files are checked against schema.json first. Exit status
1 if something is wrong.
"""

import argparse
import ast
import collections
import contextlib
import importlib.metadata
import json
import math
import pathlib
import subprocess
import sys
import typing
import warnings
from types import SimpleNamespace as Stub

import torch
import torch.nn.functional as F

HERE = pathlib.Path(__file__).resolve().parent
# What a batch of ordinary numbers has to agree to, absolute or relative.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}

# Authors' code: repository, commit, file.
SOURCES = {
    "OpenRLHF": ("OpenRLHF/OpenRLHF", "3c3be6234e0cb353e76bb8019947db9dfe99fca7", "openrlhf/models/loss.py"),
    "S-DPO": ("chenyuxin1999/S-DPO", "07befa4141239c1ecd8d13b1136d226315d0227b", "trainer/softmax_dpo_trainer.py"),
    "TPO": ("sahsaeedi/TPO", "71a44258ea94d050ef519e5a704a564787d21635", "utils/tpo_trainer.py"),
    "QRPO": (
        "CLAIRE-Labo/quantile-reward-policy-optimization",
        "0d80ee51d267bfbc03e1652aa1e3e3ab6a7b5399",
        "src/qrpo/trainers/qrpo.py",
    ),
    "A-PO": ("ZhaolinGao/A-PO", "c8823a32aeec5a4197b118c6c5222ba1b385c15e", "verl/trainer/apo/core_algos.py"),
}


def numbers(value):
    """Nested lists of numbers; infinities are words."""
    if isinstance(value, list):
        return [numbers(item) for item in value]
    return float(value)


class Batch:
    """The inputs of a case as tensors: sequences as padded rows of tokens, policies as leaves."""

    def __init__(self, case, inputs, dtype):
        self.dtype, self.config, self.kind = dtype, case["config"], case["kind"]
        self.inputs = {key: inputs[key] for key in case["reads"]}
        self.leaves = {}

    def __contains__(self, key):
        return key in self.inputs

    def plain(self, key):
        return torch.tensor(numbers(self.inputs[key]), dtype=self.dtype)

    def leaf(self, key):
        """Numbers that learn."""
        self.leaves[key] = self.plain(key).requires_grad_()
        return self.leaves[key]

    def tokens(self, key):
        """Log-probabilities of tokens as leaves, 0 where there is none; and which count."""
        rows = [numbers(row) for row in self.inputs[key]]
        width = max(1, max(map(len, rows)))
        values = torch.zeros(len(rows), width, dtype=self.dtype)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            values[i, : len(row)] = torch.tensor(row, dtype=self.dtype)
            mask[i, : len(row)] = True
        self.leaves[key] = values.requires_grad_()
        return self.leaves[key], mask

    def sums(self, key):
        values, mask = self.tokens(key)
        # Filled, not multiplied: -inf times 0 is NaN.
        return values.masked_fill(~mask, 0.0).sum(1), mask.sum(1)

    def gradient(self, key, loss):
        """The gradient in the file's order: a number for each sequence, whose tokens all have the same."""
        leaf = self.leaves[key]
        (slope,) = torch.autograd.grad(loss, leaf, retain_graph=True, allow_unused=True)
        slope = torch.zeros_like(leaf) if slope is None else slope
        if leaf.dim() == 1:
            return slope.tolist()
        return [row[0] if length else None for row, length in zip(slope.tolist(), map(len, self.inputs[key]))]


def error(ours, theirs):
    """min(absolute, relative) difference; infinite if one is NaN."""
    if ours == theirs:
        return 0.0
    difference = abs(ours - theirs)
    if math.isnan(difference) or math.isinf(difference):
        return math.inf
    return min(difference, difference / abs(ours)) if ours else difference


def flat(value):
    return [x for item in value for x in flat(item)] if isinstance(value, list) else [value]


def differences(case, batch, answer):
    """The largest error of the loss, of each gradient and of the rewards that the peer gives, by name."""
    found, count = {}, len(case["losses"])
    losses = answer.get("losses")
    if losses is None:
        total, expected, ours = answer["mean"] * count, [case["mean"]], [answer["mean"].item()]
    else:
        total, expected, ours = losses.sum(), case["losses"], losses.tolist()
    if expected != [None]:
        found["loss"] = max(error(float(a), b) for a, b in zip(expected, ours))
    for key, gradient in case["gradients"].items():
        if key in batch.leaves:
            pairs = zip(flat(gradient), flat(batch.gradient(key, total)))
            found["gradient"] = max(
                [found.get("gradient", 0.0)] + [error(float(a), b) for a, b in pairs if a is not None]
            )
    for side, ours in answer.get("rewards", {}).items():
        expected = [float(x) for x in case["rewards"][side]]
        if ours.dim() == 0:  # the peer logs a mean
            expected, ours = [sum(expected) / count], ours[None]
        found["rewards"] = max([found.get("rewards", 0.0)] + [error(a, b) for a, b in zip(expected, ours.tolist())])
    return found


# ---------------------------------------------------------------------------------------------- TRL

ACCELERATOR = Stub(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)


def trainer_stub(**fields):
    """What a loss of TRL reads of its trainer."""
    return Stub(
        model=Stub(training=False), accelerator=ACCELERATOR, aux_loss_enabled=False, _total_train_tokens=0,
        _tp_size=1, _metrics=collections.defaultdict(lambda: collections.defaultdict(list)), **fields,
    )


def logged_rewards(stub):
    logged = stub._metrics["eval"]
    return {side: torch.tensor(logged[f"rewards/{side}"][0], dtype=torch.float64) for side in ("chosen", "rejected")}


def fused_outputs(values, mask):
    zeros = torch.zeros_like(values).detach()
    log_probs = values.masked_fill(~mask, 0.0)
    return Stub(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros)


def stacked(batch, first="chosen.", second="rejected."):
    """Tokens of both completions of pairs as rows of one batch, chosen first, and their mask."""
    sides = [batch.tokens(f"{side}policy") for side in (first, second)]
    width = max(values.shape[1] for values, _ in sides)
    pad = lambda x: F.pad(x, (0, width - x.shape[1]))
    return torch.cat([pad(v) for v, _ in sides]), torch.cat([pad(m) for _, m in sides])


def trl_dpo(batch, loss_type, divergence="reverse_kl", alpha=0.5, **fields):
    from trl.trainer.dpo_trainer import DPOTrainer

    values, mask = stacked(batch)
    stub = trainer_stub(
        ld_alpha=None, precompute_ref_logps=True, f_divergence_type=divergence, f_alpha_divergence_coef=alpha,
        use_weighting=False, loss_types=[loss_type], loss_weights=[1.0],
        **{"label_smoothing": 0.0, "beta": 0.1, "args": Stub(discopop_tau=0.05), **fields},
    )
    # A prompt of one token, which does not count.
    completion = F.pad(mask, (1, 0)).long()
    inputs = {
        "completion_mask": completion, "input_ids": torch.zeros_like(completion),
        "attention_mask": torch.ones_like(completion),
        "ref_chosen_logps": batch.sums("chosen.reference")[0].detach(),
        "ref_rejected_logps": batch.sums("rejected.reference")[0].detach(),
    }
    loss = DPOTrainer._compute_loss(stub, lambda **_: fused_outputs(values, mask), inputs, False)
    return {"mean": loss, "rewards": logged_rewards(stub)}


def one_by_one(batch, run):
    """`run` on each pair alone: for losses that sort their batch."""
    losses = []
    everything = dict(batch.inputs)
    leaves = {}
    for i in range(len(everything["chosen.policy"])):
        alone = Batch({"config": batch.config, "kind": batch.kind, "reads": list(everything)},
                      {key: [value[i]] for key, value in everything.items()}, batch.dtype)
        losses.append(run(alone)["mean"])
        for key, leaf in alone.leaves.items():
            leaves.setdefault(key, []).append(leaf)
    batch.gradient = lambda key, total: [
        None if not row else torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)[0][0, 0].item()
        for leaf, row in zip(leaves[key], everything[key])
    ]
    batch.leaves = {key: None for key in leaves}
    return {"losses": torch.stack(losses)}


NOISE_IGNORED = "`sigmoid` ignores label_smoothing; `aot` on one pair at a time has it"
FLOAT_EPSILON = "float32 label_smoothing, whatever the tensors are"
BETA_RHO = "logs beta*rho whatever the loss compares"


def trl_of_pairs(batch):
    """Attempts: a convention, or None for a plain call, and the call."""
    c = batch.config
    name, beta = c["loss"], c.get("beta", c.get("tau"))
    columns = {"margin", "win_probability", "delta", "mean_margin"} & set(batch.inputs)
    if columns or c.get("label_noise", "clean") != "clean" and name not in ("dpo", "aot"):
        return None
    divergence = c.get("divergence", "reverse_kl")
    fields = {"beta": beta}
    if isinstance(divergence, dict):
        fields |= {"divergence": "alpha_divergence", "alpha": 1 - divergence["alpha"]}
    elif divergence == "chi_squared":
        return None
    else:
        fields["divergence"] = {"jensen_shannon": "js_divergence"}.get(divergence, divergence)
    noise = c.get("label_noise", "clean")
    if noise != "clean":
        ((noise, fields["label_smoothing"]),) = noise.items()
    per_token = c.get("normalization") == "mean"
    if name == "ipo" and not per_token or name == "hinge" and per_token:
        return None
    if name == "exo_pair":
        fields["label_smoothing"] = c["label_smoothing"]
    if name == "discopop":
        fields["args"] = Stub(discopop_tau=c["temperature"])
    kinds = {
        "dpo": "sigmoid_norm" if per_token else {"robust": "robust"}.get(noise, "sigmoid"),
        "ipo": "ipo", "hinge": "hinge", "exo_pair": "exo_pair", "nca": "nca_pair", "bco": "bco_pair",
        "sppo": "sppo_hard", "apo_zero": "apo_zero", "apo_down": "apo_down", "discopop": "discopop",
        "aot": "aot" if c.get("paired", True) else "aot_unpaired",
    }
    if name not in kinds:
        return None
    attempts = [(None, lambda b: trl_dpo(b, kinds[name], **fields))]
    if noise == "conservative" and name == "dpo":
        attempts.append((NOISE_IGNORED, lambda b: one_by_one(b, lambda pair: trl_dpo(pair, "aot", **fields))))
    without_rewards = lambda b: {"mean": trl_dpo(b, kinds[name], **fields)["mean"]}
    if name == "exo_pair":
        attempts.append((FLOAT_EPSILON, attempts[0][1]))
    return attempts + [(BETA_RHO, without_rewards)]


def two_words(values):
    """Logits of a vocabulary of two whose first word has these log-probabilities."""
    other = torch.log(-torch.expm1(values.clamp(max=-1e-30)))
    return torch.stack([values, other], dim=-1)


def trl_tpo(batch):
    from trl.experimental.tpo.tpo_trainer import TPOTrainer

    c = batch.config
    values, mask = stacked(batch)
    gold, gold_mask = batch.tokens("gold")
    width = max(values.shape[1], gold.shape[1])
    pad = lambda x: F.pad(x, (0, width - x.shape[1]))
    values, mask = torch.cat([pad(values), pad(gold)]), torch.cat([pad(mask), pad(gold_mask)])
    # Log-probabilities of 0 are of no softmax of two words: what does not count is even.
    logits = two_words(values.masked_fill(~mask, math.log(0.5)))
    completion = F.pad(mask, (1, 0)).long()
    inputs = {"completion_mask": completion, "input_ids": torch.zeros_like(completion),
              "attention_mask": torch.ones_like(completion)}
    noise = c["label_noise"]
    mean = c["normalization"] == "mean"
    stub = trainer_stub(
        tpo_alpha=c["sft_weight"], loss_type="tpo-l" if mean else "sigmoid", beta=c["beta"],
        tpo_l_gamma=c["target_margin"], label_smoothing=0.0 if noise == "clean" else noise["conservative"],
    )
    outputs = Stub(logits=F.pad(logits, (0, 0, 0, 1)))
    loss = TPOTrainer._compute_loss(stub, lambda **_: outputs, inputs, False)
    return {"mean": loss, "rewards": logged_rewards(stub)}


TOKEN_MEAN = "NLL is a mean over the tokens of the batch: nll_normalization token"
THE_TERM = "only the term of the pair is compared, the NLL is ours"
FLOAT_ODDS = "float32 inside; " + THE_TERM


def token_mean(batch, run):
    """What the peer gives, less its NLL over the batch's tokens, plus the NLL per sequence."""
    answer = run(batch)
    key = "gold" if "gold" in batch else "chosen.policy"
    sums, lengths = batch.nlls[key]
    weight = batch.config.get("sft_weight", 1.0)
    per_token = -sums.sum() / lengths.sum()
    per_sequence = (-sums / lengths.clamp(min=1)).mean()
    return {**answer, "mean": answer["mean"] + weight * (per_sequence - per_token)}


def remember(batch):
    """Keeps the sums of what is imitated when a peer has read the tokens."""
    batch.nlls = {}
    tokens = batch.tokens

    def remembered(key):
        values, mask = tokens(key)
        batch.nlls[key] = values.masked_fill(~mask, 0.0).sum(1), mask.sum(1)
        return values, mask

    batch.tokens = remembered
    return batch


def trl_log_probs(batch, trainer, mean):
    """Sums or means of both sides by the trainer's own function, from logits."""
    sides = []
    for side in ("chosen", "rejected"):
        values, mask = batch.tokens(f"{side}.policy")
        logits = two_words(values.masked_fill(~mask, math.log(0.5)))
        # Logits predict the token after them; the first one is a prompt.
        labels = F.pad(torch.where(mask, 0, -100), (1, 0), value=-100)
        sides.append(trainer.get_batch_logps(F.pad(logits, (0, 0, 0, 1)), labels, average_log_prob=mean))
    return sides


def trl_cpo(batch, loss_type, beta, gamma=0.0, alpha=0.0, smoothing=0.0):
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    stub = Stub(alpha=alpha, beta=beta, loss_type=loss_type, simpo_gamma=gamma, label_smoothing=smoothing,
                accelerator=ACCELERATOR)
    sides = trl_log_probs(batch, CPOTrainer, loss_type == "simpo")
    losses, chosen, rejected = CPOTrainer.cpo_loss(stub, *sides)
    return {"losses": losses, "rewards": {"chosen": chosen, "rejected": rejected}}


def smoothing_of(noise):
    return 0.0 if noise == "clean" else noise.get("conservative")


def nll_of_file(batch, weight):
    sums, lengths = batch.sums("gold") if "gold" in batch else batch.sums("chosen.policy")
    return weight * -sums / lengths.clamp(min=1)


def with_our_nll(batch, weight, run):
    """The peer's term of the pair, and the NLL of README.md: the peer is asked about the former."""
    answer = run(batch)
    if "gold" in batch:
        nll = nll_of_file(batch, weight)
    else:
        values = batch.leaves["chosen.policy"]
        lengths = torch.tensor([max(1, len(row)) for row in batch.inputs["chosen.policy"]])
        per = batch.config.get("nll_normalization", "sequence")
        tokens = sum(len(row) for row in batch.inputs["chosen.policy"])
        divisor = lengths if per == "sequence" else torch.full_like(lengths, 1) * tokens / len(lengths)
        nll = weight * -values.sum(1) / divisor
    return {**answer, "losses": answer["losses"] + nll.to(answer["losses"].dtype)}


def trl_without_reference(batch):
    c = batch.config
    smoothing = smoothing_of(c.get("label_noise", "clean"))
    if smoothing is None:
        return None
    if c["loss"] == "simpo":
        return [(None, lambda b: trl_cpo(b, "simpo", c["beta"], c["target_margin"], smoothing=smoothing))]
    if c["loss"] == "alpha_po":
        return [(None, lambda b: trl_cpo(b, "simpo", c["beta"], c["target_margin"], c["alpha"], smoothing))]
    run = lambda b: trl_cpo(b, "sigmoid", c["beta"], smoothing=smoothing)
    plain = (None, run)
    return [plain, (THE_TERM, lambda b: with_our_nll(b, c["sft_weight"], run))]


def trl_orpo(batch):
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    weight = batch.config["odds_ratio_weight"]

    def run(b):
        sides = trl_log_probs(b, ORPOTrainer, True)
        stub = Stub(beta=weight, accelerator=ACCELERATOR)
        losses, chosen, rejected, *_ = ORPOTrainer.odds_ratio_loss(stub, *sides)
        # TRL subtracts it from the NLL.
        return {"losses": -losses, "rewards": {"chosen": chosen, "rejected": rejected}}

    return [(None, run), (FLOAT_ODDS, lambda b: with_our_nll(b, 1.0, run))]


def trl_kto(batch, loss_type):
    from trl.trainer.kto_trainer import KTOTrainer

    c = batch.config
    values, mask = batch.tokens("policy")
    z0 = torch.tensor([float(batch.inputs.get("z0", 0.0))], dtype=batch.dtype)
    stub = trainer_stub(
        _compute_kl_logps=lambda *_: z0, calculate_KL=True, precompute_ref_logps=True, loss_type=loss_type,
        beta=c["beta"], desirable_weight=c.get("desirable_weight", 1.0),
        undesirable_weight=c.get("undesirable_weight", 1.0),
    )
    completion = F.pad(mask, (1, 0)).long()
    inputs = {
        "completion_mask": completion, "input_ids": torch.zeros_like(completion),
        "attention_mask": torch.ones_like(completion), "label": torch.tensor(batch.inputs["desirable"]),
        "ref_logps": batch.sums("reference")[0].detach(), "ref_KL_logps": torch.zeros_like(z0),
    }
    return {"mean": KTOTrainer._compute_loss(stub, lambda **_: fused_outputs(values, mask), inputs, False)}


def trl_reward(batch):
    from trl import RewardTrainer

    c = batch.config
    if c["label_noise"] != "clean" or "win_probability" in batch:
        return None

    def run(b):
        rewards = torch.cat([b.leaf("chosen.reward"), b.leaf("rejected.reward")])
        stub = trainer_stub(args=Stub(center_rewards_coefficient=c["centering_weight"]))
        inputs = {"attention_mask": torch.ones(1)}
        if "margin" in b:
            inputs["margin"] = b.plain("margin")
        outputs = Stub(logits=rewards[:, None])
        return {"mean": RewardTrainer.compute_loss(stub, lambda **_: outputs, inputs)}

    return [(None, run)]


def trl_a2po(batch):
    from trl.experimental.a2po.a2po_trainer import A2POTrainer

    def run(b):
        policy = b.sums("policy")[0]
        stub = trainer_stub(_get_sequence_logps=lambda *_: policy, args=Stub(beta2=b.config["beta"]))
        inputs = {"input_ids": None, "attention_mask": None, "logits_to_keep": None,
                  "ref_logps": b.sums("reference")[0].detach(), "rewards": b.plain("score"), "v_star": b.plain("value")}
        return {"mean": A2POTrainer.compute_loss(stub, None, inputs)}

    return [(None, run)]


def trl(batch):
    name, kind = batch.config["loss"], batch.kind
    if kind == "pairs" and "chosen.reference" in batch:
        return trl_of_pairs(batch)
    if name in ("simpo", "cpo", "alpha_po"):
        return None if "gold" in batch else trl_without_reference(batch)
    if name == "orpo":
        return None if "gold" in batch else trl_orpo(batch)
    if name == "tpo":
        c = batch.config
        plain = trl_tpo
        wrong_margin = c["normalization"] == "sum" and c["target_margin"] != 0.0
        if wrong_margin or smoothing_of(c["label_noise"]) is None:
            return None
        return [(None, plain), (TOKEN_MEAN, lambda b: token_mean(remember(b), plain))]
    if kind == "completions" and name in ("kto", "apo_zero"):
        loss_type = {"kto": "kto", "apo_zero": "apo_zero_unpaired"}[name]
        return [(None, lambda b: trl_kto(b, loss_type))]
    if name == "bradley_terry":
        return trl_reward(batch)
    if name == "astar_po":
        return trl_a2po(batch)
    return None


# -------------------------------------------------------------------------------------------- Liger


def liger_inputs(values, mask):
    """Hidden states, a head and targets with these log-probabilities: two words, one hidden size each."""
    hidden = two_words(values.masked_fill(~mask, math.log(0.5)))
    return hidden, torch.eye(2, dtype=values.dtype), torch.where(mask, 0, -100)


def liger_pairs(batch, loss, **kwargs):
    values, mask = stacked(batch)
    hidden, head, target = liger_inputs(values, mask)
    if "chosen.reference" in batch:
        sides = [batch.tokens(f"{side}.reference")[0] for side in ("chosen", "rejected")]
        for side in ("chosen", "rejected"):
            del batch.leaves[f"{side}.reference"]
        reference = torch.cat([F.pad(x, (0, mask.shape[1] - x.shape[1])) for x in sides]).detach()
        kwargs = {"ref_input": liger_inputs(reference, mask)[0], "ref_weight": head}
    return {"mean": loss(head, hidden, target, **kwargs)[0]}


def liger(batch):
    import liger_kernel.chunked_loss as peer

    c, name = batch.config, batch.config["loss"]
    if "-inf" in json.dumps(batch.inputs):
        return None  # a product of the hidden states would be NaN
    if {"margin", "win_probability", "delta", "gold"} & set(batch.inputs):
        return None
    noise = c.get("label_noise", "clean")
    if batch.kind == "pairs" and "chosen.reference" in batch:
        kinds = {"dpo": "sigmoid", "hinge": "hinge", "exo_pair": "exo_pair", "nca": "nca_pair", "bco": "bco_pair",
                 "sppo": "sppo_hard", "apo_zero": "apo_zero", "apo_down": "apo_down", "discopop": "discopop"}
        plain = c.get("divergence", "reverse_kl") == "reverse_kl" and c.get("normalization", "sum") == "sum"
        if name not in kinds or not plain or noise != "clean" and "robust" not in noise:
            return None
        smoothing = c.get("label_smoothing", 0.0) if noise == "clean" else noise["robust"]
        loss = peer.LigerFusedLinearDPOLoss(
            beta=c["beta"], loss_type=kinds[name] if noise == "clean" else "robust", label_smoothing=smoothing,
            discopop_tau=c.get("temperature", 0.05), compiled=False,
        )
        return [(None, lambda b: liger_pairs(b, loss))]
    smoothing = smoothing_of(noise)
    if name in ("simpo", "cpo", "orpo") and smoothing is not None:
        if name == "simpo":
            loss = peer.LigerFusedLinearSimPOLoss(
                beta=c["beta"], gamma=c["target_margin"], label_smoothing=smoothing, compute_nll_loss=False, compiled=False)
        elif name == "cpo":
            loss = peer.LigerFusedLinearCPOLoss(
                beta=c["beta"], alpha=c["sft_weight"], label_smoothing=smoothing, compiled=False)
        else:
            loss = peer.LigerFusedLinearORPOLoss(beta=c["odds_ratio_weight"], compiled=False)
        plain = lambda b: liger_pairs(b, loss)
        return [(None, plain), (TOKEN_MEAN, lambda b: token_mean(remember(b), plain))]
    if name == "kto" and c["desirable_weight"] == c["undesirable_weight"] == 1.0:

        def run(b):
            values, mask = b.tokens("policy")
            hidden, head, target = liger_inputs(values, mask)
            reference = b.tokens("reference")[0].detach()
            del b.leaves["reference"]
            loss = peer.LigerFusedLinearKTOLoss(beta=c["beta"], use_ref_model=True, compiled=False)
            return {"mean": loss(hidden, head, target, preference_labels=torch.tensor(b.inputs["desirable"]),
                                 ref_input=liger_inputs(reference, mask)[0], ref_weight=head,
                                 kl=torch.tensor(float(b.inputs["z0"]), dtype=b.dtype))[0]}

        return [(None, run)]
    return None


# ------------------------------------------------------------------------------------ authors' code


def source(name, clones):
    """The text of an author's file at its commit, from a clone or fetched."""
    repository, commit, path = SOURCES[name]
    clone = clones / repository.replace("/", "+")
    clone = clone / "repo" if (clone / "repo").exists() else clone
    git = lambda *args: subprocess.run(["git", "-C", clone, *args], check=True, capture_output=True, text=True).stdout
    if not clone.exists():
        clone.mkdir(parents=True)
        git("init", "-q")
        git("fetch", "-q", "--depth", "1", f"https://github.com/{repository}", commit)
    return git("show", f"{commit}:{path}")


class Authors:
    """Functions and classes of files, compiled alone: nothing else of the file runs."""

    def __init__(self, clones):
        self.clones, self.known = clones, {}

    def get(self, file, name):
        if (file, name) not in self.known:
            tree = ast.parse(source(file, self.clones))
            nodes = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name]
            nodes[0].decorator_list = []
            scope = {**vars(typing), "torch": torch, "F": F, "nn": torch.nn, "math": math, "dict": dict}
            scope["AutoModel"] = None
            future = ast.parse("from __future__ import annotations").body
            exec(compile(ast.Module(future + [nodes[0]], []), file, "exec"), scope)
            self.known[file, name] = scope[name]
        return self.known[file, name]


def openrlhf(authors, batch):
    c, name = batch.config, batch.config["loss"]
    if name == "bradley_terry":
        if c["label_noise"] != "clean" or c["centering_weight"] and "margin" not in batch or "win_probability" in batch:
            return None

        def run(b, loss="PairWiseLoss"):
            margin = b.plain("margin") if "margin" in b else None
            rewards = b.leaf("chosen.reward"), b.leaf("rejected.reward")
            mean = authors.get("OpenRLHF", loss)().forward(*rewards, margin)
            # It has no centring: ours is added.
            centring = (rewards[0] + rewards[1]).square().mean() * c["centering_weight"]
            return {"mean": mean + centring}

        return [(None, run)]
    noise = smoothing_of(c.get("label_noise", "clean"))
    plain = c.get("divergence", "reverse_kl") == "reverse_kl" and c.get("normalization", "sum") == "sum"
    if name not in ("dpo", "ipo") or not plain or noise is None or {"margin", "win_probability"} & set(batch.inputs):
        return None

    def run(b):
        loss = authors.get("OpenRLHF", "DPOLoss")(c.get("beta", c.get("tau")), noise, name == "ipo")
        policy = [b.sums(f"{side}.policy")[0] for side in ("chosen", "rejected")]
        reference = [b.sums(f"{side}.reference")[0].detach() for side in ("chosen", "rejected")]
        mean, chosen, rejected = loss.forward(*policy, *reference)
        return {"mean": mean, "rewards": {"chosen": chosen, "rejected": rejected}}

    return [(None, run)]


def sdpo(authors, batch):
    """Lists whose best candidate is one: the others are rejected, whatever their scores."""
    if batch.config["loss"] != "sdpo":
        return None

    def run(b):
        lists = b.inputs["policy"]
        leaves, references, losses = [], [], []
        for policy, reference, score in zip(lists, b.inputs["reference"], b.inputs["score"]):
            policy = torch.tensor([math.fsum(numbers(row)) for row in policy], dtype=b.dtype, requires_grad=True)
            leaves.append(policy)
            reference = torch.tensor([math.fsum(numbers(row)) for row in reference], dtype=b.dtype)
            best = [i for i, s in enumerate(score) if s == max(score)]
            worse = [i for i, s in enumerate(score) if s < max(score)]
            if not worse:
                losses.append(policy.sum() * 0)
                continue
            mean = 0
            for w in best:
                of = lambda values: {f"rejected{i}": values[i : i + 1] for i in worse}
                stub = Stub(beta=b.config["beta"])
                loss, *_ = authors.get("S-DPO", "dpo_loss")(
                    stub, policy[w : w + 1], of(policy), reference[w : w + 1], of(reference))
                mean = mean + loss[0] / len(best)
            losses.append(mean)
        b.leaves = {"policy": None}
        b.gradient = lambda key, total: [
            [slope if row else None for slope, row in zip(g.tolist(), rows)]
            for g, rows in zip(torch.autograd.grad(total, leaves, retain_graph=True), lists)
        ]
        return {"losses": torch.stack(losses)}

    return [(None, run)]


def tpo(authors, batch):
    c = batch.config
    if c["loss"] != "tpo" or smoothing_of(c["label_noise"]) is None:
        return None

    def run(b):
        mean = c["normalization"] == "mean"
        stub = Stub(accelerator=ACCELERATOR, loss_type="tpo-l" if mean else "sigmoid", beta=c["beta"],
                    tpo_l_gamma=c["target_margin"], label_smoothing=smoothing_of(c["label_noise"]))
        sides = []
        for side in ("chosen", "rejected"):
            sums, lengths = b.sums(f"{side}.policy")
            sides.append(sums / lengths if mean else sums)
        losses, chosen, rejected = authors.get("TPO", "tpo_loss")(stub, *sides)
        return {"losses": losses, "rewards": {"chosen": chosen, "rejected": rejected}}

    def with_nll(b):
        answer = run(b)
        sums, lengths = b.sums("gold")
        divisor = lengths.clamp(min=1) if c["nll_normalization"] == "sequence" else lengths.sum() / len(lengths)
        return {**answer, "losses": answer["losses"] - c["sft_weight"] * sums / divisor}

    return [(None, run), (THE_TERM, with_nll)]


NO_MINUS_ONE = "float32 inside, and Z = beta*e^(1/beta) without the -1"


def qrpo(authors, batch):
    c = batch.config
    scores = batch.inputs.get("score", [])
    # Quantiles are counted over reference rewards: four have quarters.
    if c["loss"] != "qrpo" or any(4 * s != int(4 * s) for s in scores):
        return None

    def run(b):
        policy, reference = b.sums("policy")[0], b.sums("reference")[0].detach()
        rewards = 4 * b.plain("score")
        stub = Stub(accelerator=ACCELERATOR, beta=c["beta"], qrpo_transform_type="identity", qrpo_loss_type="mse",
                    qrpo_sample_selector="chosen")
        outputs = {"chosen_logps": policy, "rejected_logps": policy.detach()}
        quarters = torch.arange(1, 5, dtype=b.dtype).expand(len(scores), 4)
        losses, predicted, _ = authors.get("QRPO", "qrpo_loss")(
            stub, model_outputs=outputs, ref_chosen_logps=reference, ref_rejected_logps=reference,
            chosen_rewards=rewards, rejected_rewards=rewards, ref_rewards=quarters,
            extra_logs={},
        )
        return {"losses": 2 * losses}

    def with_the_one(b):
        # The same function at a score that is higher by what it leaves out.
        answer = run(b)
        beta = c["beta"]
        left_out = beta * math.log1p(-math.exp(-1 / beta))
        root = b.plain("score") - beta * (math.log(beta) + 1 / beta)
        policy = b.leaves["policy"].sum(1)
        residual = root - beta * (policy - b.sums("reference")[0].detach())
        return {"losses": answer["losses"] + (residual - left_out).square() - residual.square()}

    return [(None, run), (NO_MINUS_ONE, with_the_one)]


def a_po(authors, batch):
    if batch.config["loss"] != "astar_po":
        return None

    def run(b):
        policy, mask = b.tokens("policy")
        reference, _ = b.tokens("reference")
        del b.leaves["reference"]
        rewards = torch.zeros_like(policy).detach()
        # The reward stands at a token that counts.
        rewards[:, 0] = b.plain("score")
        values = policy.masked_fill(~mask, 0.0)
        mean = authors.get("A-PO", "compute_policy_loss")(
            mask.long(), reference.detach(), values, mask.shape[1], rewards, b.plain("value"), b.config["beta"])
        return {"mean": mean}

    return [(None, run)]


# -------------------------------------------------------------------------------------------- table


def version(package):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)


def peers(clones):
    """Name with version, the attempts of a batch, and the number type that the peer computes in."""
    found = []
    if installed := version("trl"):
        found.append((f"TRL {installed}", trl, torch.float64))
    if installed := version("liger-kernel"):
        # It upcasts logits to float32, no further.
        found.append((f"Liger {installed}", liger, torch.float32))
    if clones:
        authors = Authors(clones)
        for name, attempts in [("OpenRLHF", openrlhf), ("S-DPO", sdpo), ("TPO", tpo), ("QRPO", qrpo), ("A-PO", a_po)]:
            commit = SOURCES[name][1][:8]
            found.append((f"{name} {commit}", lambda b, run=attempts: run(authors, b), torch.float64))
    return found


def judge(case, inputs, attempts, dtype):
    """None if the peer does not have this case; otherwise a convention or '' that fits, or the errors."""
    offered = attempts(Batch(case, inputs, dtype))
    if offered is None:
        return None
    first = None
    for convention, run in offered:
        batch = Batch(case, inputs, dtype)
        found = differences(case, batch, run(batch))
        allowed = TOLERANCE[torch.float32 if convention and convention.startswith("float32") else dtype]
        if all(e <= allowed for e in found.values()):
            return convention or ""
        first = first or found
    return first


def validate():
    """Every file against schema.json, where jsonschema is installed."""
    with contextlib.suppress(ImportError):
        import jsonschema

        schema = jsonschema.Draft202012Validator(json.loads((HERE / "schema.json").read_text()))
        for path in set(HERE.glob("*.json")) - {HERE / "schema.json"}:
            schema.validate(json.loads(path.read_text()))


def check(clones):
    """Prints the table; the number of errors, and whose code agrees with each objective."""
    wrong, agreed = 0, collections.defaultdict(list)
    print("| objective | peer | ordinary numbers | at extremes |\n|---|---|---|---|")
    for path in sorted(HERE.glob("*.json")):
        file = json.loads(path.read_text())
        if "cases" not in file or file["objective"] == "head":
            continue
        for peer, attempts, dtype in peers(clones):
            same, conventions, errors = 0, collections.Counter(), []
            extremes = collections.Counter()
            for case in file["cases"]:
                inputs = file["batches"][case["batch"]]
                plain = case["batch"].endswith(".ordinary")
                try:
                    verdict = judge(case, inputs, attempts, dtype)
                except (KeyError, RuntimeError, NotImplementedError) as e:
                    if not (isinstance(e, KeyError) and "float64" in str(e)):
                        raise
                    verdict = judge(case, inputs, attempts, torch.float32)
                if verdict is None:
                    continue
                if not plain:
                    place = case["batch"].split(".")[1]
                    if isinstance(verdict, str):
                        extremes["same"] += 1
                    elif math.inf in verdict.values():
                        extremes[f"{place}: not the number"] += 1
                    # Float32 rounds sums of -1e4 before a loss sees them: only NaN tells there.
                    elif dtype == torch.float64:
                        extremes[f"{place}: {max(verdict.values()):.0e} off"] += 1
                elif verdict == "":
                    same += 1
                elif isinstance(verdict, str):
                    conventions[verdict] += 1
                else:
                    errors.append(f"{json.dumps(case['config'])}: {verdict}")
            if not (same or conventions or errors):
                continue
            words = [f"same ({same})"] if same else []
            words += [f"differs ({n}): {text}" for text, n in conventions.items()]
            words += [f"**wrong**: {text}" for text in errors]
            wrong += len(errors)
            if not errors:
                agreed[file["objective"]].append(peer)
            beyond = ", ".join(f"{text} ({n})" for text, n in sorted(extremes.items()))
            print(f"| {file['objective']} | {peer} | {'; '.join(words)} | {beyond} |")
    return wrong, agreed


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clones", type=pathlib.Path, help="where authors' repositories are, or are fetched to")
    parser.add_argument("--record", type=pathlib.Path, help="a file for whose code agrees with which objective")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    validate()
    wrong, agreed = check(arguments.clones)
    if arguments.record:
        arguments.record.write_text(json.dumps(agreed, indent=1, sort_keys=True) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
