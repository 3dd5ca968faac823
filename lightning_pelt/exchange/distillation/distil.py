"""``distil_lora``: a LoRA that does what any plan does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_pelt.attach import Attachment
from lightning_pelt.attach.beside import one_attachment
from lightning_pelt.exchange.distillation.agreement import Agreement, measure
from lightning_pelt.exchange.distillation.constant_updates import constant_updates, put_updates
from lightning_pelt.exchange.distillation.fit import Recipe, fit
from lightning_pelt.exchange.distillation.hidden_states import Changes, Watched
from lightning_pelt.exchange.distillation.initial_update import Factors, factors_of, fit_in_passing
from lightning_pelt.exchange.distillation.student import evaluating, lora_for, student_of
from lightning_pelt.exchange.distillation.unlabelled_rows import (
    Batch,
    batches_for,
    joined,
    on,
    split,
)
from lightning_pelt.methods import LoRA

FIRST_FIT = 2**30  # bytes of recorded layers for the first fit
MOST_TOKENS = 8192  # of the first fit


@dataclass(frozen=True)
class Report:
    """How near a distilled LoRA comes to its plan, on rows that it was not trained on.

    Attributes:
        exact: whether the plan is such a LoRA, so that nothing was trained.
        first: of the LoRA that least squares on each layer gives, before training; None if exact.
        last: of the returned LoRA; None if there were no rows.
        steps: optimizer steps.
    """

    exact: bool
    first: Agreement | None
    last: Agreement | None
    steps: int


class Distilled(NamedTuple):
    """A model with a LoRA, and how near it comes to the plan that it was distilled from.

    Attributes:
        model: a copy of the base with the LoRA attached, in eval mode.
        report: measured on held-out rows.
    """

    model: PreTrainedModel
    report: Report


def distil_lora(
    model: nn.Module,
    data: Iterable[Any] = (),
    *,
    r: int = 16,
    sites: Sequence[str] | None = None,
    epochs: int = 3,
    lr: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> Distilled:
    r"""A copy of an attached model that has a plain LoRA in the place of its plan.

    A LoRA can be merged and is read by every serving engine; gates, adapters and prefixes are not.

    - A plan of LoRA whose gates are closed or do not depend on the input is folded exactly, if
      ``r`` is at least the sum of its ranks and ``sites`` has its sites. No rows are needed.
    - Any other plan is distilled. Each linear layer first gets the update of rank ``r`` that
      reproduces on the data what the plan does there (reduced-rank regression, layer after layer,
      so that a layer also corrects the errors of those before it). Then all updates are trained
      together: the hidden states of each block and the logits follow those of the plan,
      :math:`\frac{1}{L} \sum_l |h_l - h^*_l|^2 / |h^0_l - h^*_l|^2 + KL(p^* \| p)`, with
      :math:`h^*` of the plan and :math:`h^0` of the base alone (compare TinyBERT, Jiao et al.,
      2020; https://arxiv.org/abs/1909.10351).

    What a plan does outside the blocks and their ``sites``, such as BitFit's bias of a pooler, is
    beyond the LoRA; the report shows how much is lost.

    The given model does not change, nor does the global random state. The head of the copy is that
    of the model, and so are its norms where the plan trains them. Both models and all batches are
    in memory.

    Args:
        model: an attached, trained model, or a module that holds one.
        data: batches of unlabelled rows, as mappings of tensors: a list or a ``DataLoader``. Labels
            are ignored, and padding does not count. One batch of ten is held out for the report,
            unless there is a single batch. A few thousand rows such as those of the training
            suffice.
        r: rank of the LoRA at each site.
        sites: roles of linear layers, see :class:`lightning_pelt.LoRA`. By default all of those of
            the blocks that the model has.
        epochs: passes over the data; 0 for the first fit alone.
        lr: largest learning rate of AdamW.
        seed: of the weights and of the order of the batches.
        progress: whether to show a bar, if it takes more than five seconds.

    Returns:
        The copy with ``Plan.uniform(LoRA(r, ...))`` attached, and a :class:`Report`.

    Raises:
        ValueError: nothing or several adapters are attached, the base is trained as well, the plan
            has several profiles or heads of profiles, there are no rows although the plan is not an
            exact LoRA, a batch is not a mapping, an option is out of range, or training diverged.

    Example:
        >>> from lightning_pelt import UniPELT, attach, merge
        >>> from lightning_pelt.testing import tiny_bert
        >>> model = tiny_bert()
        >>> attachment = attach(model, UniPELT())  # and train it
        >>> rows = [{"input_ids": torch.randint(5, 99, (8, 7))} for _ in range(4)]
        >>> student, report = distil_lora(model, rows, r=4, epochs=1)
        >>> report.exact, report.steps
        (False, 3)
        >>> merged = merge(student)
    """
    _refuse_options(r=r, epochs=epochs, lr=lr)
    teacher = one_attachment(model)
    lora = lora_for(teacher, r=r, sites=sites)
    with evaluating(teacher.model), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone
        extra = [name for method in teacher.plan.methods for name in method.batch_inputs]
        batches = batches_for(teacher.model, data, extra)
        example = on(teacher.model.device, batches[0]) if batches else None
        student = student_of(teacher, lora, seed=seed, example=example)
        report = _Pair(student, teacher).distil(batches, Recipe(epochs, lr, seed, progress))
    return Distilled(student.model, report)


def _refuse_options(*, r: int, epochs: int, lr: float) -> None:
    for name, value, least in (("r", r, 1), ("epochs", epochs, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}, expected a whole number from {least} on")
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr is {lr}, expected a positive number")


class _Pair:
    """A plan, and the LoRA that is to follow it.

    Args:
        student: the attachment of the LoRA, which does nothing yet.
        teacher: the attachment of the plan.
    """

    def __init__(self, student: Attachment, teacher: Attachment) -> None:
        self.student, self.teacher = student, teacher
        self.own = Watched(student.model, student.anatomy)
        self.target = Watched(teacher.model, teacher.anatomy)
        self.factors = factors_of(student)

    def distil(self, batches: list[Batch], recipe: Recipe) -> Report:
        """Fold the plan if it is a LoRA, or train the LoRA on ``batches``.

        Raises:
            ValueError: there are no batches to train on.
        """
        updates = constant_updates(self.teacher)
        if not batches:
            if updates is None or not put_updates(self.factors, updates):
                raise ValueError(_no_rows(self.factors, constant=updates is not None))
            return Report(True, None, None, 0)
        rows, held_out = split(batches)
        changes = Changes.of(self.own, self.target, held_out)
        if updates is not None and put_updates(self.factors, updates):
            return Report(True, None, measure(self.own, self.target, held_out, changes), 0)
        if updates is None:
            batch = joined(rows, self.tokens(), seed=recipe.seed)
            fit_in_passing(self.student, self.teacher, self.factors, batch)
        first = measure(self.own, self.target, held_out, changes)
        if first.hidden_error > 1:  # worse than the base alone
            for site in self.factors:
                site.up.zero_()
        steps = fit(
            self.own,
            self.target,
            rows,
            parameters=self.student.parameter_groups()[LoRA.name],
            changes=changes,
            recipe=recipe,
        )
        return Report(False, first, measure(self.own, self.target, held_out, changes), steps)

    def tokens(self) -> int:
        """Number of tokens whose layers fit into the memory for the first fit."""
        widths = sum(site.up.shape[0] for site in self.factors)
        return max(1, min(MOST_TOKENS, FIRST_FIT // (4 * max(widths, 1))))


def _no_rows(factors: Sequence[Factors], *, constant: bool) -> str:
    rank = factors[0].down.shape[0]
    if constant:
        return (
            f"there are no rows, and rank r={rank} at these sites cannot hold the plan exactly: "
            "use a larger r (the sum of the ranks of its LoRAs) and all of its sites, or give rows"
        )
    return (
        "there are no rows, and the plan is not a LoRA with constant gates, so it has to be "
        "learned from what it does: give batches of unlabelled rows, distil_lora(model, batches)"
    )
