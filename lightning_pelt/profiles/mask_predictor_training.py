"""Trains a :class:`MaskPredictor` on the users of a model, each in turn taken for a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import transformers  # its schedules import PEFT if installed, so not before one is used
from datasets import Dataset
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from tqdm import tqdm
from transformers import PreTrainedModel

from lightning_pelt.methods.xpeft.masks import profiles_of
from lightning_pelt.methods.xpeft.method import PROFILE
from lightning_pelt.profiles.evidence import Evidence, evidence, mean_logits, selected
from lightning_pelt.profiles.mask_predictor import MaskPredictor
from lightning_pelt.tasks import Classification
from lightning_pelt.training.module import PELTModule

Rows = Mapping[int, Sequence[int]]  # the numbers of the rows of each user
Collation = Callable[[Any], Mapping[str, Any]]
Precision = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Episodes:
    """How a :class:`MaskPredictor` is trained.

    A step draws users. Of each it draws rows to predict, and summarises a random share of the
    user's other rows. Some users are mixed: they have rows of all users, of one to three labels, so
    that the network meets more distributions of labels than there are users. The predictor is
    trained on the loss of the rows to predict, with the masks that it predicts from the summaries.
    The model is not changed.

    Args:
        steps: number of steps.
        users: users of a step.
        rows: rows of each user that a step predicts.
        mixed: share of mixed users.
        least: smallest share of the other rows that a summary is made of; the largest is 1.
        lr: learning rate, which falls linearly to 0.
        weight_decay: of the predictor.
        rank: see :class:`MaskPredictor`.
        hidden: see :class:`MaskPredictor`.
        dropout: see :class:`MaskPredictor`.
        seed: of the first weights, the draws and the dropout.
    """

    steps: int = 120
    users: int = 4
    rows: int = 8
    mixed: float = 0.5
    least: float = 0.25
    lr: float = 3e-3
    weight_decay: float = 0.01
    rank: int = 16
    hidden: int = 32
    dropout: float = 0.1
    seed: int = 0

    def draw(
        self, rows: Rows, labels: Tensor, random: torch.Generator
    ) -> list[tuple[Tensor, Tensor]]:
        """The rows to predict and the rows to summarise, of each user of a step.

        Args:
            rows: the numbers of the rows of each user.
            labels: of all rows (R,).
            random: the state of the draws.
        """
        users, drawn = [*rows], []
        for number in torch.randperm(len(users), generator=random)[: self.users].tolist():
            own = torch.tensor(rows[users[number]])
            if torch.rand((), generator=random).item() < self.mixed:
                own = _mixed(rows, labels, len(own), random)
            own = own[torch.randperm(len(own), generator=random)]
            query = min(self.rows, len(own) // 2)
            share = self.least + (1 - self.least) * torch.rand((), generator=random).item()
            support = max(1, round(share * (len(own) - query)))
            drawn.append((own[:query], own[query : query + support]))
        return drawn


def _mixed(rows: Rows, labels: Tensor, count: int, random: torch.Generator) -> Tensor:
    """At most ``count`` rows of all users, at least two, of one to three labels."""
    every = torch.tensor([row for own in rows.values() for row in own])
    kinds, counts = labels[every].unique(return_counts=True)
    kinds = kinds[counts > 1]
    if not len(kinds):
        return every
    some = 1 + int(torch.randint(3, (), generator=random))
    chosen = kinds[torch.randperm(len(kinds), generator=random)[:some]]
    every = every[torch.isin(labels[every], chosen)]
    return every[torch.randperm(len(every), generator=random)[: max(2, count)]]


def learn(
    module: PELTModule,
    examples: Dataset,
    collate: Collation,
    episodes: Episodes,
    *,
    precision: Precision = nullcontext,
    progress: bool = False,
) -> MaskPredictor:
    """Train the predictor of a model's masks on its users.

    Args:
        module: a trained classifier with X-PEFT. Its weights do not change.
        examples: the tokenized training rows of all users, with ``labels`` and ``profile``.
        collate: makes a batch of rows.
        episodes: the settings.
        precision: makes the context of each forward, such as that of a trainer.
        progress: whether a bar is shown.

    Raises:
        ValueError: the task of the module is not classification, or fewer than two users have two
            rows each, so that none can be taken for new.
    """
    if not isinstance(module.task, Classification):
        raise ValueError(
            f"the task is {type(module.task).__name__}, and masks are predicted from the errors of "
            "a model by label: use a checkpoint of the task Classification"
        )
    model = module.eval().model
    assert model is not None
    users, start = usable_users(examples), mean_logits(model)
    labels, random = torch.tensor(examples["labels"][:]), torch.Generator()
    random.manual_seed(episodes.seed)
    with precision():
        seen = evidence(model, batches(module, examples, collate), start)
    with torch.random.fork_rng(devices=[]), _frozen(model):
        torch.manual_seed(episodes.seed)
        predictor = _new(seen, users, start, episodes).to(module.device)
        optimizer = AdamW(predictor.parameters(), episodes.lr, weight_decay=episodes.weight_decay)
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, episodes.steps)
        for _ in tqdm(range(episodes.steps), unit=" steps", disable=not progress):
            drawn = episodes.draw(users, labels, random)
            query = torch.cat([rows for rows, _ in drawn])
            batch = moved(module, collate(examples[query.tolist()]))
            summaries = torch.stack([seen.summary(rows) for _, rows in drawn])
            inverse = torch.cat([torch.full((len(q),), i) for i, (q, _) in enumerate(drawn)])
            with precision():
                loss = _loss(module, predictor(summaries), inverse.to(module.device), batch)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(predictor.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return predictor.eval()


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Let no parameter of the model require a gradient in a ``with`` block."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@torch.no_grad()
def predict_logits(
    predictor: MaskPredictor,
    module: PELTModule,
    examples: Dataset,
    collate: Collation,
    *,
    precision: Precision = nullcontext,
) -> Tensor:
    """The mask logits (L, 2, N) of one new user, from one forward pass over the user's rows.

    Args:
        predictor: of the module's model.
        module: the trained classifier.
        examples: tokenized rows of the user, with ``labels``.
        collate: makes a batch of rows.
        precision: see :func:`learn`.
    """
    model = module.eval().model
    assert model is not None
    predictor.to(module.device)
    with precision():
        seen = evidence(model, batches(module, examples, collate), predictor.start)
    return predictor(seen.summary()[None])[0]


def _loss(module: PELTModule, logits: Tensor, inverse: Tensor, batch: Mapping[str, Any]) -> Tensor:
    model = module.model
    assert isinstance(model, PreTrainedModel)
    inputs = {name: value for name, value in batch.items() if name != PROFILE}
    with profiles_of(model, selected(model, logits, inverse)):
        loss, _ = module.task.step(model, inputs)
    return loss


def _new(seen: Evidence, users: Rows, start: Tensor, episodes: Episodes) -> MaskPredictor:
    predictor = MaskPredictor(
        start,
        labels=seen.errors.shape[1],
        width=seen.hidden.shape[1] - 1,
        rank=episodes.rank,
        hidden=episodes.hidden,
        dropout=episodes.dropout,
    )
    whole = [seen.summary(torch.tensor(rows).to(seen.hidden.device)) for rows in users.values()]
    predictor.to(seen.hidden.device).scale_to(torch.stack(whole))
    return predictor


def usable_users(examples: Dataset) -> dict[int, list[int]]:
    """The numbers of the rows of each user with two rows or more."""
    rows: dict[int, list[int]] = {}
    for number, user in enumerate(examples[PROFILE][:]):
        rows.setdefault(user, []).append(number)
    found = {user: own for user, own in sorted(rows.items()) if len(own) > 1}
    if len(found) < 2:
        raise ValueError(
            f"the number of profiles with two training rows or more is {len(found)}, expected at "
            "least 2: the network learns from some rows of a profile to predict its others"
        )
    return found


def batches(module: PELTModule, examples: Dataset, collate: Collation) -> Any:
    """All rows in their order, on the device of the module."""
    size = 64
    for first in range(0, len(examples), size):
        yield moved(module, collate(examples[first : first + size]))


def moved(module: PELTModule, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch on the device of the module."""
    return {name: value.to(module.device) for name, value in batch.items()}
