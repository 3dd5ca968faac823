"""Twenty steps of UniPELT with a schedule and a monitor, on one process or two; also a script.

Without dropout the steps depend on nothing but the global batches, so that runs can be compared.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from callbacks.tiny import trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from small import LABELS, Sentences, bert

from lightning_pelt import (
    S4,
    XPEFT,
    Adapter,
    BitFit,
    Compacter,
    GateMonitor,
    GateSchedule,
    Group,
    LoRA,
    PELTModule,
    Plan,
    Prefix,
    Prompt,
    RandomBank,
    UniPELT,
)
from lightning_pelt.training.phases import Phase
from lightning_pelt.utils.shards import is_shard

# The second has what lies at the root, base weights that are trained, and two ways to be shared.
# The last two have no gates, and different methods in their blocks.
PLANS: dict[str, Plan] = {
    "unipelt": UniPELT(),
    "compacter": UniPELT(
        [Compacter(bottleneck=8, rule_std=0.1), Prompt(length=3), LoRA()], norms=True
    ),
    "xpeft": UniPELT([XPEFT(RandomBank(size=4), k=2), Prefix(length=4), LoRA()]),
    "groups": Plan([Group([Adapter(), LoRA()]), Group([BitFit(), Prefix(length=4)])], norms=True),
    "s4": S4(budget=2_000),
}
COMPILED = {"backend": "eager", "dynamic": True}  # the graphs are the same with every backend
GLOBAL_BATCH, STEPS, HALF = 4, 20, 8  # HALF lies within the second epoch of five batches


class Agree(Callback):
    """Every rank ends with the same weights."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        for parameter in pl_module.parameters():
            if parameter.requires_grad and not is_shard(parameter):
                own = parameter.detach()
                everywhere = pl_module.all_gather(own) if trainer.world_size > 1 else [own]
                assert all(torch.equal(own, other) for other in everywhere)


def backbone(folder: Path, plan: str = "unipelt") -> str:
    """A BERT of as many blocks as a plan has groups, at least two."""
    sizes = {"num_hidden_layers": 4 if plan == "s4" else 2}
    return bert(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)


def schedule(plan: Plan) -> GateSchedule:
    first, second, *_ = plan.methods
    phases = {first.name: [Phase(until=10, held=True), Phase(lr_factor=0.5)]}
    if second.gate is None:
        return GateSchedule(phases, unit="step")
    phases[second.name] = [Phase(until=3, state="closed"), Phase(until=12, state="ramp")]
    return GateSchedule(phases, unit="step", prune_below=0.01)


def fit(
    folder: Path,
    backbone: str,
    *,
    plan: str = "unipelt",
    strategy: str | Strategy = "auto",
    devices: int = 1,
    data_ranks: int | None = None,
    callbacks: Sequence[Callback] = (),
    resume: Path | None = None,
    compile: bool | dict[str, Any] = False,
    seed: int | None = None,
    **options: Any,
) -> None:
    """Run up to the twentieth step, with a checkpoint in ``folder`` every four steps.

    Args:
        data_ranks: number of processes with separate batches; by default all.
        seed: of this process; by default a random one.
    """
    if seed is not None:
        torch.manual_seed(seed)
    rates: dict[str, Any] = {"lr": 2e-3, "warmup": 0.1}
    module = PELTModule(backbone, PLANS[plan], labels=LABELS, compile=compile, **rates)
    data = Sentences(backbone, batch_size=GLOBAL_BATCH // (data_ranks or devices))
    keep = {"dirpath": folder, "filename": "{step}", "save_top_k": -1}
    saving = ModelCheckpoint(every_n_train_steps=4, **keep)
    defaults = {"logger": CSVLogger(folder, name="", version="run"), "max_epochs": -1}
    monitor = GateMonitor(every_n_steps=2, heatmap=False, over_time=False)
    run = trainer(
        folder,
        schedule(PLANS[plan]),
        *([monitor] if PLANS[plan].methods[0].gate else []),
        Agree(),
        *callbacks,
        saving,
        **{**defaults, "max_steps": STEPS, "enable_checkpointing": True, **options},
        strategy=strategy,
        devices=devices,
    )
    # A process group in a reference cycle must not be freed in a fork: it would wait there for
    # threads that only its own process has.
    gc.collect()
    run.fit(module, data, ckpt_path=resume, weights_only=True)


def last(folder: Path) -> Path:
    return folder / f"step={STEPS}.ckpt"


def half(folder: Path) -> Path:
    return folder / f"step={HALF}.ckpt"


def assert_same(left: Path, right: Path, *, within: float = 1e-5) -> None:
    """The weights of two checkpoints agree."""
    one, other = (torch.load(path, weights_only=True)["state_dict"] for path in (left, right))
    assert one.keys() == other.keys()
    torch.testing.assert_close(other, one, rtol=0, atol=within)


def main() -> None:
    """Under FSDP2: afresh, on from another run's half, and on from a sharded half of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("backbone")
    parser.add_argument("half", type=Path)
    parser.add_argument("--compiled", action="store_true", help="run that alone")
    asked = parser.parse_args()
    torch.set_num_threads(1)

    def two(*, sharded: bool = False) -> dict[str, Any]:
        strategy = ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            save_distributed_checkpoint=sharded,
            process_group_backend="gloo",
        )
        return {"strategy": strategy, "devices": 2}

    if asked.compiled:
        fit(asked.folder, asked.backbone, compile=COMPILED, **two())
        return
    fit(asked.folder / "afresh", asked.backbone, **two())
    fit(asked.folder / "resumed", asked.backbone, resume=asked.half, **two())
    sharded = asked.folder / "sharded"
    fit(sharded, asked.backbone, **two(sharded=True))
    fit(asked.folder / "from_shards", asked.backbone, resume=half(sharded), **two())
    fit(asked.folder / "compacter", asked.backbone, plan="compacter", **two())
    fit(asked.folder / "mixed", asked.backbone, precision="bf16-mixed", **two())


if __name__ == "__main__":
    main()
