"""The setups of the study on authors, and how they are trained and scored; see ``authors.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from adapter_per_profile import AdapterPerProfile, ProfileAdapters
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_pelt.data import ProfileDataModule
from lightning_pelt.methods import XPEFT, Adapter
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.xpeft import BankTensors, RandomBank
from lightning_pelt.methods.xpeft.bank_files import fingerprint
from lightning_pelt.methods.xpeft.masks import Masks, masks_of
from lightning_pelt.plans import HeadOnly, Plan
from lightning_pelt.profiles import read_profile
from lightning_pelt.training import PELTModule

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
State = Mapping[str, Tensor]
Counts = dict[str, tuple[int, int]]  # correct rows and rows, by author


@dataclass(frozen=True)
class Setup:
    """A way to tune for many authors, with the settings that were selected on the dev split.

    Args:
        method: attached in every block; None for no method. The number of authors is set later.
        lr: learning rate of the head.
        method_lr: learning rate of the method.
        batch_size: rows of a step.
        alone: whether each author has a separate fit, on the author's rows and with an own head.
        fixed_masks: whether masks stay as drawn.
        head_from: setup whose trained head is the initial head.
        bank_from: setup whose adapters are the bank.
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


SETUPS: dict[str, Setup] = {
    "hard-100": Setup(hard(100), method_lr=5e-2),
    "random-100": Setup(hard(100), method_lr=5e-2, fixed_masks=True),
    "adapter-each": Setup(AdapterPerProfile()),
    "head": Setup(),
    "adapter": Setup(Adapter()),
    "adapter-alone": Setup(Adapter(), alone=True, batch_size=8),
    "adapter-alone-warm": Setup(Adapter(), alone=True, batch_size=8, head_from="head"),
    "soft-100": Setup(soft(100), method_lr=5e-2),
    "hard-trained": Setup(hard(28), method_lr=5e-2, bank_from="adapter-each"),
    "hard-200": Setup(hard(200), method_lr=5e-2),
    "soft-200": Setup(soft(200), method_lr=5e-2),
    "hard-400": Setup(hard(400), method_lr=5e-2),
    "soft-400": Setup(soft(400), method_lr=5e-2),
}


@dataclass(frozen=True)
class SharedSettings:
    """The settings that all setups share.

    Args:
        folder: has train.jsonl, dev.jsonl and test.jsonl with text, label_name and profile.
        out: folder of the results.
        backbone: hub id or folder.
        epochs: epochs of every fit.
        max_length: tokens of a row.
        precision: precision of the trainer.
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
    """The model of a setup, optionally with fixed masks or with a trained initial head."""

    fixed_masks = False
    initial_head: State | None = None

    def configure_model(self) -> None:
        super().configure_model()
        assert self.model is not None and self.attachment is not None
        if self.fixed_masks:
            masks_of(self.model).logits.requires_grad_(False)
        if self.initial_head is not None:
            with torch.no_grad():
                for name in self.attachment.head:
                    self.model.get_parameter(name).copy_(self.initial_head[name])

    def head_weights(self) -> State:
        """The weights of the head by name."""
        assert self.model is not None and self.attachment is not None
        return {name: self.model.get_parameter(name).detach() for name in self.attachment.head}


def fit(
    setup: Setup,
    shared: SharedSettings,
    *,
    seed: int,
    only: str | None = None,
    head: State | None = None,
) -> Model:
    """Train a setup on all rows, or on the rows of the author ``only``."""
    model, data = untrained(setup, shared, seed=seed, only=only, head=head)
    with sdpa_kernel(SDPBackend.MATH):  # on a CPU, the backward of the fused kernel is slower
        shared.trainer().fit(model, data)
    return model


def untrained(
    setup: Setup,
    shared: SharedSettings,
    *,
    seed: int,
    only: str | None = None,
    head: State | None = None,
) -> tuple[Model, ProfileDataModule]:
    """What :func:`fit` trains, and the data that it trains on."""
    seed_everything(seed, verbose=False)
    data = shared.data(only=only, batch_size=setup.batch_size, seed=seed)
    method = setup.method
    if isinstance(method, XPEFT):
        bank = method.bank
        drawn = replace(bank, seed=seed) if isinstance(bank, RandomBank) else bank
        method = replace(method, bank=drawn, profiles=len(data.profiles))
    model = Model(
        shared.backbone,
        HeadOnly() if method is None else Plan.uniform(method),
        labels=data.labels,
        lr=setup.lr,
        lrs={} if method is None else {method.name: setup.method_lr},
        warmup=0.06,
        base_dropout=False,
        seed=seed,
    )
    model.fixed_masks, model.initial_head = setup.fixed_masks, head
    return model, data


def score(
    model: PELTModule, shared: SharedSettings, split: str, *, only: str | None = None
) -> Counts:
    """The number of correctly predicted rows of a split and of all its rows, by author."""
    data = shared.data(test=split, only=only, batch_size=64)
    batches: Any = shared.trainer().predict(model, data)
    rows, labels = data.rows("test"), data.labels
    assert labels is not None
    found = [row["label"] for batch in batches for row in batch]
    counts: Counts = {}
    for label, true, author in zip(found, rows["label"][:], rows["profile"][:], strict=True):
        right, count = counts.get(data.profiles[author], (0, 0))
        counts[data.profiles[author]] = right + (label == labels[true]), count + 1
    return counts


def sizes(model: Model, *, alone: bool) -> dict[str, int]:
    """Trained parameters that are shared and per author, and the bytes per author."""
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
    adapters = any(isinstance(m, ProfileAdapters) for m in model.modules())
    size = 4 * own if adapters else sum(read_profile(model).bytes_by_part().values())
    return {"shared": trained - own * authors, "own": own, "bytes": size}


def bank_of(model: Model) -> BankTensors:
    """The adapters of a trained ``AdapterPerProfile`` as a bank."""
    sites = [module for module in model.modules() if isinstance(module, ProfileAdapters)]

    def stacked(parts: Callable[[ProfileAdapters], Iterable[Tensor]]) -> Tensor:
        return torch.stack([torch.stack([*parts(site)]) for site in sites]).detach()

    A = stacked(lambda site: (one.flatten() for one in site.A))
    B = stacked(lambda site: (one[:-1].flatten() for one in site.B))
    c, b_bias = stacked(lambda site: site.c), stacked(lambda site: (one[-1] for one in site.B))
    width = b_bias.shape[-1]
    return BankTensors(A, B, c, b_bias, width=width, digest=fingerprint((A, B, c, b_bias), width))
