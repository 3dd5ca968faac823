"""Ways to tune for many authors, and how each is fitted and scored: see ``benchmark.authors``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_pelt.benchmark.adapter_each import AdapterEach, OwnAdapters
from lightning_pelt.data import ProfileDataModule
from lightning_pelt.method import Method
from lightning_pelt.methods import XPEFT, Adapter
from lightning_pelt.module import PELTModule
from lightning_pelt.plan import HeadOnly, Plan
from lightning_pelt.profiles.bank import BankTensors, RandomBank
from lightning_pelt.profiles.keeping import read_profile
from lightning_pelt.profiles.masks import Masks, masks_of
from lightning_pelt.profiles.trained_bank import fingerprint

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
State = Mapping[str, Tensor]
Counts = dict[str, tuple[int, int]]  # by author: rows that are right, rows


@dataclass(frozen=True)
class Contestant:
    """A way to tune, with the settings that the dev split chose.

    Args:
        method: what is attached in every block; None is nothing. It is told the number of authors.
        lr: of the head.
        method_lr: of the method.
        batch_size: rows of a step.
        alone: one fit per author, on the author's rows only, with a head of its own.
        fixed_masks: masks stay as drawn.
        head_from: contestant whose trained head is the first one here.
        bank_from: contestant whose adapters are the bank.
    """

    method: Method | None = None
    lr: float = 3e-2
    method_lr: float = 1e-3
    batch_size: int = 32
    alone: bool = False
    fixed_masks: bool = False
    head_from: str | None = None
    bank_from: str | None = None


def hard(size: int, **options: Any) -> XPEFT:
    """Half of a random bank."""
    bank = RandomBank(size=size)
    return XPEFT(bank=bank, k=size // 2, temperature=10.0, precision="bfloat16", **options)


def soft(size: int, **options: Any) -> XPEFT:
    """All of a random bank."""
    return XPEFT(bank=RandomBank(size=size), mask="soft", precision="bfloat16", **options)


CONTESTANTS: dict[str, Contestant] = {
    "hard-100": Contestant(hard(100), method_lr=5e-2),
    "random-100": Contestant(hard(100), method_lr=5e-2, fixed_masks=True),
    "adapter-each": Contestant(AdapterEach()),
    "head": Contestant(),
    "adapter": Contestant(Adapter()),
    "adapter-alone": Contestant(Adapter(), alone=True, batch_size=8),
    "adapter-alone-warm": Contestant(Adapter(), alone=True, batch_size=8, head_from="head"),
    "soft-100": Contestant(soft(100), method_lr=5e-2),
    "hard-trained": Contestant(hard(28), method_lr=5e-2, bank_from="adapter-each"),
    "hard-200": Contestant(hard(200), method_lr=5e-2),
    "soft-200": Contestant(soft(200), method_lr=5e-2),
    "hard-400": Contestant(hard(400), method_lr=5e-2),
    "soft-400": Contestant(soft(400), method_lr=5e-2),
}


@dataclass(frozen=True)
class Common:
    """What is the same for all contestants.

    Args:
        folder: holds train.jsonl, dev.jsonl and test.jsonl with text, label_name and profile.
        out: where results are kept.
        epochs: of every fit.
        max_length: tokens of a row.
        precision: of the trainer.
        limit: rows of each split, for a trial.
    """

    folder: Path
    out: Path
    backbone: str = MINILM
    epochs: int = 5
    max_length: int = 32
    precision: str = "bf16-mixed"
    limit: int | None = None

    def data(self, *, test: str = "test", **options: Any) -> ProfileDataModule:
        return ProfileDataModule(
            self.backbone,
            train=str(self.folder / "train.jsonl"),
            test=str(self.folder / f"{test}.jsonl"),
            label="label_name",
            max_length=self.max_length,
            limit_train=self.limit,
            limit_eval=self.limit,
            **options,
        )

    def trainer(self) -> Trainer:
        return Trainer(
            max_epochs=self.epochs,
            precision=self.precision,  # type: ignore[arg-type]
            gradient_clip_val=1.0,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


class Model(PELTModule):
    """A contestant's model: masks may stay as drawn, and the head may begin trained."""

    fixed_masks = False
    first_head: State | None = None

    def configure_model(self) -> None:
        super().configure_model()
        assert self.model is not None and self.attachment is not None
        if self.fixed_masks:
            masks_of(self.model).logits.requires_grad_(False)
        if self.first_head is not None:
            with torch.no_grad():
                for name in self.attachment.head:
                    self.model.get_parameter(name).copy_(self.first_head[name])

    def head(self) -> State:
        """What ``first_head`` takes."""
        assert self.model is not None and self.attachment is not None
        return {name: self.model.get_parameter(name).detach() for name in self.attachment.head}


def fit(
    entry: Contestant,
    common: Common,
    *,
    seed: int,
    only: str | None = None,
    head: State | None = None,
) -> Model:
    """Train a contestant on all rows, or on those of ``only`` one author."""
    seed_everything(seed, verbose=False)
    data = common.data(only=only, batch_size=entry.batch_size, seed=seed)
    method = entry.method
    if isinstance(method, XPEFT):
        bank = method.bank
        drawn = replace(bank, seed=seed) if isinstance(bank, RandomBank) else bank
        method = replace(method, bank=drawn, profiles=len(data.profiles))
    model = Model(
        common.backbone,
        HeadOnly() if method is None else Plan.uniform(method),
        labels=data.labels,
        lr=entry.lr,
        lrs={} if method is None else {method.name: entry.method_lr},
        warmup=0.06,
        base_dropout=False,
        seed=seed,
    )
    model.fixed_masks, model.first_head = entry.fixed_masks, head
    with sdpa_kernel(SDPBackend.MATH):  # on a CPU the backward of the fused one is slower
        common.trainer().fit(model, data)
    return model


def score(model: PELTModule, common: Common, split: str, *, only: str | None = None) -> Counts:
    """How many of each author's rows of a split are predicted right."""
    data = common.data(test=split, only=only, batch_size=64)
    batches: Any = common.trainer().predict(model, data)
    rows, labels = data.rows("test"), data.labels
    assert labels is not None
    found = [row["label"] for batch in batches for row in batch]
    counts: Counts = {}
    for label, true, author in zip(found, rows["label"][:], rows["profile"][:], strict=True):
        right, count = counts.get(data.profiles[author], (0, 0))
        counts[data.profiles[author]] = right + (label == labels[true]), count + 1
    return counts


def sizes(model: Model, *, alone: bool) -> dict[str, int]:
    """Trained parameters that all authors share and of each author, and what an author takes."""
    assert model.model is not None
    trained = sum(p.numel() for p in model.model.parameters() if p.requires_grad)
    if alone:
        return {"shared": 0, "own": trained, "bytes": 4 * trained}
    masks = next((m for m in model.modules() if isinstance(m, Masks)), None)
    if masks is None:
        return {"shared": trained, "own": 0, "bytes": 0}
    authors = len(masks.logits)
    lists = [m for m in model.modules() if isinstance(m, nn.ParameterList) and len(m) == authors]
    own = sum(p.numel() for one in lists for p in one if p.requires_grad) // authors
    adapters = any(isinstance(m, OwnAdapters) for m in model.modules())
    size = 4 * own if adapters else sum(read_profile(model).bytes_by_part().values())
    return {"shared": trained - own * authors, "own": own, "bytes": size}


def bank_of(model: Model) -> BankTensors:
    """The authors' adapters of a trained ``AdapterEach`` as a bank."""
    sites = [module for module in model.modules() if isinstance(module, OwnAdapters)]

    def stacked(parts: Callable[[OwnAdapters], Iterable[Tensor]]) -> Tensor:
        return torch.stack([torch.stack([*parts(site)]) for site in sites]).detach()

    A = stacked(lambda site: (one.flatten() for one in site.A))
    B = stacked(lambda site: (one[:-1].flatten() for one in site.B))
    c, b_bias = stacked(lambda site: site.c), stacked(lambda site: (one[-1] for one in site.B))
    width = b_bias.shape[-1]
    return BankTensors(A, B, c, b_bias, width=width, digest=fingerprint((A, B, c, b_bias), width))
