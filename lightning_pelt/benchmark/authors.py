"""Real authors: what X-PEFT's masks are worth beside whole adapters, on a folder of labelled texts.

    python -m lightning_pelt.benchmark.authors --data FOLDER --seeds 0 1 2 --out FOLDER

All contestants have the same rows, 5 epochs of batches of 32, 32 tokens a row, bf16-mixed, no
dropout in the base, warmup 6% and then a linear decay; the weights of the last epoch count.
``adapter-each`` is one ordinary adapter per author, all trained in one run under one head, as the
masks are. The two ``alone`` are one fit per author, with a head of its own, in batches of 8.

Rates were chosen on the dev split of ``huffpost_authors``, seed 0 (518 rows, so a standard error of
2 points a figure), and the test split was read once the settings were final:

- Head: hard masks at 3e-3, 1e-2, 3e-2 gave 67.2, 69.5, 71.2, an adapter for each author 69.3, 72.0,
  71.8: 3e-2 for all. Higher ones were not tried.
- Hard masks, with the head at 3e-3: rates 2e-2, 5e-2, 1e-1 gave 65.8, 67.2, 65.6 at temperature 10;
  temperature 1 instead 66.2; at temperature 1 also a scale of 0.4, for 1 / sqrt(50), 64.7 and each
  author's own norm 65.4. The size of the bank, and k = N / 2, were not chosen but given.
- Adapters, with the head at 3e-3: 1e-3 and 3e-3 gave 69.3 and 61.8. The shared one has 1e-3 too.
- Not tuned by themselves: the control (all as hard masks have it), the shared adapter, soft masks
  (temperature 1), the trained bank, banks of 200 and 400, and fits alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from datasets import disable_progress_bars
from lightning.pytorch import Trainer, seed_everything
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_pelt.benchmark.adapter_each import AdapterEach, OwnAdapters
from lightning_pelt.data import ProfileDataModule
from lightning_pelt.errors import unknown
from lightning_pelt.files import write_aside
from lightning_pelt.method import Method
from lightning_pelt.methods import XPEFT, Adapter
from lightning_pelt.module import PELTModule
from lightning_pelt.plan import HeadOnly, Plan
from lightning_pelt.profiles.bank import BankTensors, RandomBank, TrainedBank, save_bank
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


class Runs:
    """Results of finished runs, one JSON file each; what a run hands on to others lies beside."""

    def __init__(self, common: Common, *, log: bool = True) -> None:
        self.common, self.log = common, log
        common.out.mkdir(parents=True, exist_ok=True)

    def result(self, name: str, seed: int) -> dict[str, Any]:
        """Of one run, which is made unless it was finished with the same settings before."""
        settings = self.settings(name)
        path = self.common.out / f"{name}-{seed}.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] == settings:
                return found
        start = time.perf_counter()
        found = {"settings": settings, **self._make(name, seed)}
        found["seconds"] = round(time.perf_counter() - start)
        text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
        write_aside(path, lambda aside: aside.write_text(text, encoding="utf-8"))
        if self.log:
            print(f"{name} {seed}: dev {micro(found['dev']):.2f}, {found['seconds']} s", flush=True)
        return found

    def settings(self, name: str) -> str:
        """All that a result depends on but the seed, wherever the folders lie."""
        here = replace(self.common, folder=Path(self.common.folder.name), out=Path())
        return f"{CONTESTANTS[name]}; {here}"

    def _make(self, name: str, seed: int) -> dict[str, Any]:
        entry = CONTESTANTS[name]
        head = None
        if entry.head_from is not None:
            self.result(entry.head_from, seed)
            head = load_file(self._beside(entry.head_from, seed, "head"))
        if entry.bank_from is not None:
            self.result(entry.bank_from, seed)
            bank = TrainedBank([str(self._beside(entry.bank_from, seed, "bank"))])
            assert isinstance(entry.method, XPEFT)
            entry = replace(entry, method=replace(entry.method, bank=bank))
        authors: list[str | None] = [None]
        if entry.alone:
            authors = [*self.common.data().profiles]
        counts: dict[str, Counts] = {"dev": {}, "test": {}}
        for only in authors:
            model = fit(entry, self.common, seed=seed, only=only, head=head)
            for split, of_split in counts.items():
                of_split |= score(model, self.common, split, only=only)
        if entry.method is None:
            save_file(dict(model.head()), self._beside(name, seed, "head"))
        if isinstance(entry.method, AdapterEach):
            save_bank(bank_of(model), self._beside(name, seed, "bank"))
        return {**sizes(model, alone=entry.alone), **counts}

    def _beside(self, name: str, seed: int, what: str) -> Path:
        return self.common.out / f"{name}-{seed}.{what}.safetensors"


def micro(counts: Counts) -> float:
    """Accuracy over rows, in points."""
    return 100 * sum(right for right, _ in counts.values()) / sum(n for _, n in counts.values())


def macro(counts: Counts) -> float:
    """Mean over authors of their accuracies, in points."""
    return 100 * mean(right / rows for right, rows in counts.values())


HEAD = (
    "contestant", "trained, shared", "trained, an author", "bytes an author",
    "dev", "test", "test, mean of authors", "seeds",
)  # fmt: skip


def row(name: str, results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """A contestant's line of the table, over the results of its seeds."""
    first = results[0]
    return (
        name,
        *(f"{first[key]:,}" for key in ("shared", "own", "bytes")),
        f"{mean(micro(result['dev']) for result in results):.1f}",
        _spread([micro(result["test"]) for result in results]),
        _spread([macro(result["test"]) for result in results]),
        str(len(results)),
    )


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """In Markdown."""
    lines = [HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m lightning_pelt.benchmark.authors",
        description="Accuracy of masks over a bank, of whole adapters, and of controls, by author.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--data", type=Path, required=True, help="folder of the three splits")
    options.add_argument("--out", type=Path, default=Path("runs/authors"), help="finished runs")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--only", nargs="+", metavar="NAME", type=_name, default=[*CONTESTANTS])
    options.add_argument("--backbone", default=Common.backbone)
    options.add_argument("--epochs", type=int, default=Common.epochs)
    options.add_argument("--max-length", type=int, default=Common.max_length)
    options.add_argument("--precision", default=Common.precision)
    options.add_argument("--limit", type=int, help="rows of each split, for a trial")
    return options


def _name(name: str) -> str:
    if name not in CONTESTANTS:
        raise argparse.ArgumentTypeError(str(unknown("contestant", name, CONTESTANTS)))
    return name


def main(args: Sequence[str] | None = None) -> str:
    """Run what is not finished yet, seed by seed, then print the table and return it."""
    given = parser().parse_args(args)
    disable_progress_bars()
    warnings.filterwarnings("ignore", module="lightning")
    for name in ("lightning.pytorch", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    common = Common(
        given.data,
        given.out,
        backbone=given.backbone,
        epochs=given.epochs,
        max_length=given.max_length,
        precision=given.precision,
        limit=given.limit,
    )
    runs = Runs(common)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in given.only}
    for seed in given.seeds:
        for name in given.only:
            results[name].append(runs.result(name, seed))
    printed = table([row(name, found) for name, found in results.items()])
    print(printed)
    return printed


if __name__ == "__main__":
    main()
