"""The ways to give masks to authors whom a model has not seen; see ``new_authors.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from author_fits import Counts, Model, SharedSettings
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW
from transformers import get_linear_schedule_with_warmup

from lightning_pelt.methods.xpeft.masks import profiles_of
from lightning_pelt.methods.xpeft.method import PROFILE
from lightning_pelt.profiles.evidence import mean_logits, selected
from lightning_pelt.profiles.mask_predictor import MaskPredictor
from lightning_pelt.profiles.mask_predictor_training import batches, predict_logits

REFINED = 10  # steps
WAYS = (
    "random masks",
    "mean of the seen masks",
    "predicted masks",
    "mean, ten steps",
    "predicted, ten steps",
    "full fit from the mean",
)


@dataclass(frozen=True)
class NewFit:
    """How the masks of a new author are trained.

    Args:
        epochs: of a full fit.
        lr: learning rate of a full fit.
        refine_lr: learning rate of ten steps.
        batch_size: rows of a step.
    """

    epochs: int = 5
    lr: float = 5e-2
    refine_lr: float = 5e-2
    batch_size: int = 32


class Masked:
    """A trained model and the rows of authors that it has not seen.

    Args:
        module: the model.
        shared: has the folder of the authors.
        split: the rows that are scored.
        settings: how masks are trained.
    """

    def __init__(self, module: Model, shared: SharedSettings, split: str, settings: NewFit) -> None:
        self.module, self.shared, self.split, self.settings = module.eval(), shared, split, settings
        self.data = shared.data(test=split)
        self.collate = self.data.collate()

    def logits(self, way: str, predictor: MaskPredictor) -> Tensor:
        """The mask logits of all authors (U, L, 2, N)."""
        kind, *steps = way.split(", ")
        start = self._starts(kind, predictor)
        if kind == "full fit from the mean":
            return self._fit(start, None)
        return self._fit(start, REFINED) if steps else start

    def _starts(self, kind: str, predictor: MaskPredictor) -> Tensor:
        mean = mean_logits(self.module)
        authors = self.data.profiles
        if kind == "random masks":
            random = torch.Generator().manual_seed(0)
            return torch.randn(len(authors), *mean.shape, generator=random)
        if not kind.startswith("predicted"):
            return mean.repeat(len(authors), 1, 1, 1)
        own = [self.shared.data(only=name) for name in authors]
        return torch.stack(
            [predict_logits(predictor, self.module, d.examples("train"), self.collate) for d in own]
        )

    def _fit(self, start: Tensor, steps: int | None) -> Tensor:
        examples = self.data.examples("train")
        author = torch.tensor(examples[PROFILE][:])
        rows = [torch.where(author == number)[0] for number in range(len(start))]
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        with sdpa_kernel(SDPBackend.MATH):
            return torch.stack(
                [self._fit_one(*pair, steps) for pair in zip(start, rows, strict=True)]
            )

    def _fit_one(self, start: Tensor, rows: Tensor, steps: int | None) -> Tensor:
        size, random = self.settings.batch_size, torch.Generator().manual_seed(0)
        per_epoch = -(-len(rows) // size)
        count = steps or self.settings.epochs * per_epoch
        epochs = -(-count // per_epoch)
        order = [
            batch
            for _ in range(epochs)
            for batch in rows[torch.randperm(len(rows), generator=random)].split(size)
        ]
        logits = start.clone().requires_grad_()
        lr = self.settings.refine_lr if steps else self.settings.lr
        optimizer = AdamW([logits], lr, weight_decay=0.0)
        schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * count), count)
        for batch in order[:count]:
            loss = self._loss(logits[None], batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([logits], 1.0)
            optimizer.step()
            schedule.step()
        return logits.detach()

    def _loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        batch = self.collate(self.data.examples("train")[rows.tolist()])
        inverse = torch.zeros(len(rows), dtype=torch.long)
        inputs: Any = {name: value for name, value in batch.items() if name != PROFILE}
        assert self.module.model is not None
        with profiles_of(self.module.model, selected(self.module.model, logits, inverse)):
            return self.module.task.step(self.module.model, inputs)[0]

    @torch.no_grad()
    def score(self, logits: Tensor | None) -> Counts:
        """Correct rows and rows by author; without logits, of a model without masks."""
        counts: Counts = {}
        model = self.module.model
        assert model is not None
        for batch in batches(self.module, self.data.examples("test"), self.collate):
            authors, labels = batch.pop(PROFILE), batch.pop("labels")
            if logits is None:
                scores = model(**batch).logits
            else:
                with profiles_of(model, selected(model, logits, authors)):
                    scores = model(**batch).logits
            right = (scores.argmax(-1) == labels).tolist()
            for author, hit in zip(authors.tolist(), right, strict=True):
                name = self.data.profiles[author]
                before = counts.get(name, (0, 0))
                counts[name] = before[0] + hit, before[1] + 1
        return counts
