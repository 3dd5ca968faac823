"""The gradient of every profile is clipped by its own norm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from callbacks.tiny import trainer
from small import LABELS, Sentences, bert
from torch import Tensor

from lightning_pelt import XPEFT, PELTModule, Plan, RandomBank
from lightning_pelt.methods.xpeft.masks import Masks, masks_of


def masks(norm: str | None) -> Masks:
    made = Masks(
        profiles=3,
        sites=2,
        size=5,
        k=2,
        scale=1.0,
        temperature=1.0,
        noise=0.0,
        init_std=0.01,
        bottleneck=4,
        norm=norm,  # type: ignore[arg-type]
    )
    for number, logits in enumerate(made.logits):
        logits.grad = torch.full_like(logits, 10.0 ** (number - 1))
        if made.own_norms:
            made.norms[number].grad = torch.full_like(made.norms[number], 10.0 ** (number - 1))
    made.logits[1].grad = None
    return made


def norm_of(*tensors: Tensor | None) -> float:
    return sum(float(t.square().sum()) for t in tensors if t is not None) ** 0.5


def test_a_large_gradient_does_not_scale_a_small_one_of_another_profile() -> None:
    made = masks(None)
    small = made.logits[0].grad.clone()  # type: ignore[union-attr]
    clipped = made.clip_gradients(1.0)
    assert torch.equal(made.logits[0].grad, small)  # type: ignore[arg-type]
    assert made.logits[1].grad is None
    assert norm_of(made.logits[2].grad) == pytest.approx(1.0, abs=1e-4)
    assert [id(p) for p in clipped] == [id(p) for p in made.logits]


def test_the_norms_of_a_profile_count_with_its_masks() -> None:
    made = masks("profile")
    made.clip_gradients(1.0)
    assert norm_of(made.logits[2].grad, made.norms[2].grad) == pytest.approx(1.0, abs=1e-4)


def test_other_parameters_are_not_clipped_per_profile() -> None:
    made = masks("shared")
    head = torch.nn.Parameter(torch.zeros(4))
    head.grad = torch.full((4,), 3.0)
    clipped = made.clip_gradients(1.0)
    large = made.logits[2].grad.clone()  # type: ignore[union-attr]
    assert not {id(head), id(made.norms[0])} & {id(p) for p in clipped}
    assert norm_of(head.grad) == pytest.approx(6.0)
    assert torch.equal(made.logits[2].grad, large)  # type: ignore[arg-type]


def test_in_a_fit(tmp_path: Path) -> None:
    """With SGD and lr=1, an update has the norm of the clipped gradient."""
    backbone = bert(tmp_path / "bert")
    plan = Plan.uniform(XPEFT(bank=RandomBank(size=8), k=2, bottleneck=4, scale=8.0))
    module = PELTModule(
        backbone, plan, labels=LABELS, lr=1.0, optimizer=lambda groups: torch.optim.SGD(groups)
    )
    module.configure_model()
    before = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
    run = trainer(tmp_path, max_steps=1, gradient_clip_val=1e-3)
    run.fit(module, Sentences(backbone))
    moved = {n: p.detach() - before[n] for n, p in module.named_parameters() if n in before}
    logits = norm_of(*(m for n, m in moved.items() if ".logits." in n))
    rest = norm_of(*(m for n, m in moved.items() if ".logits." not in n))
    assert masks_of(module).logits
    assert logits == pytest.approx(1e-3, rel=0.05)
    assert rest == pytest.approx(1e-3, rel=0.05)
