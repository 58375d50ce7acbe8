"""A transformers BERT and a Llama with random weights on haian's kernels, through PyTorch: right, and really served.

Each model runs forward and one training step (dropout 0) three times: in float64 (the truth), in float32 on PyTorch's own
kernels, in float32 on haian's.  haian's error of logits, loss and every gradient must be at most twice PyTorch's own, and at
least 95 % of the compute calls (all but views and allocation) must be haian's.

    python examples/transformers_models.py [bert|llama]          exit code 1 where one of that does not hold
"""
from __future__ import annotations

import sys

import haian.bridges.torch as ht
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

BATCH, LENGTH, LIMIT, SHARE = 4, 64, 2.0, 0.95


def bert() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """BERT of 4 layers, hidden 256, 4 heads, and a batch with padding."""
    config = BertConfig(vocab_size=1000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
                        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.int64)
    mask[0, LENGTH // 2:] = 0
    return BertForSequenceClassification(config), {"input_ids": torch.randint(0, 1000, (BATCH, LENGTH)), "attention_mask": mask,
                                                   "labels": torch.randint(0, 3, (BATCH,))}


def llama() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Llama of 4 layers, hidden 256, 8 heads over 4 key-value heads."""
    config = LlamaConfig(vocab_size=1000, hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, intermediate_size=688)
    ids = torch.randint(0, 1000, (BATCH, LENGTH))
    return LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}


def step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits, loss and gradients of one training step, in float64; the weights move too (SGD)."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    optimizer.zero_grad()
    out = model(**batch)
    out.loss.backward()
    found = {"logits": out.logits, "loss": out.loss} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = {n: t.detach().double().clone() for n, t in found.items()}
    optimizer.step()
    return found


def error(got: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative error ||got - truth|| / ||truth|| of logits, loss, and all gradients as one vector."""
    gradients = [n for n in truth if n not in ("logits", "loss")]
    assert got.keys() == truth.keys()

    def relative(names: list[str]) -> float:
        off = sum(float((got[n] - truth[n]).square().sum()) for n in names)
        size = sum(float(truth[n].square().sum()) for n in names)
        return (off / size) ** 0.5

    return {"logits": relative(["logits"]), "loss": relative(["loss"]), "gradients": relative(gradients)}


def check(name: str, make) -> bool:
    torch.manual_seed(0)
    model, batch = make()
    weights = {k: v.clone() for k, v in model.state_dict().items()}

    truth = step(model.double(), batch)
    model.float().load_state_dict(weights)
    own = error(step(model, batch), truth)
    model.load_state_dict(weights)
    with ht.enable() as on, ht.Census(on) as census:
        ours = error(step(model, batch), truth)

    print(f"{name}: {census}")
    good = census.share >= SHARE
    for what in own:
        # the loss is one number: a lucky torch may be off by less than a rounding, which nothing can halve
        floor = 2.0**-24
        ratio = ours[what] / max(own[what], floor)
        good = good and ratio <= LIMIT
        print(f"  {what:<10} error: haian {ours[what]:.2e}, torch {own[what]:.2e}, ratio {ratio:.2f} (at most {LIMIT})")
    print(f"  {'holds' if good else 'DOES NOT HOLD'}")
    return good


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["bert", "llama"]
    results = [check(name, {"bert": bert, "llama": llama}[name]) for name in chosen]
    sys.exit(0 if all(results) else 1)
