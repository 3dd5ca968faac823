"""``PELTModule(compile=...)``: one graph over a schedule, and checkpoints of either kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import Tiny, loader, trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from small import LABELS, Sentences
from torch._dynamo.utils import counters
from twenty_steps import backbone as small_backbone

from lightning_pelt import (
    GateSchedule,
    PELTCallback,
    PELTModule,
    Phase,
    UniPELT,
    load_adapters,
    save_adapters,
)

# What Inductor makes of a graph is torch's affair.
WHOLE = {"backend": "eager", "fullgraph": True, "dynamic": True}
EPOCHS = 4


class Stranger(Tiny):
    """A module that leaves attaching to the callback."""

    def configure_model(self) -> None: ...


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, *given: Any) -> None:
        self.seen.append(float(given[2]["loss"]))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def schedule() -> GateSchedule:
    """The prefix joins late, and every gate is pruned at the end."""
    phases = {
        "prefix": [Phase(until=1, state="closed"), Phase(until=3, state="ramp")],
        "adapter": [Phase(until=2, held=True), Phase(lr_factor=0.5)],
    }
    return GateSchedule(phases, prune_below=0.99, prune_after=1)


def module(backbone: str, compile: bool | dict[str, Any] = False) -> PELTModule:
    return PELTModule(backbone, UniPELT(), labels=LABELS, lr=2e-3, compile=compile)


def fit(
    folder: Path,
    fitted: Any,
    backbone: str,
    *,
    epochs: int = EPOCHS,
    resume: Any = None,
    **more: Any,
) -> list[float]:
    """The losses of all steps, and a checkpoint after every epoch."""
    losses, planned = Losses(), schedule()
    saving = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    options = {"max_epochs": epochs, "enable_checkpointing": True, **more}
    run = trainer(folder, losses, planned, saving, **options)
    # More rows than tokens: sizes that are equal by chance would have a graph of their own.
    data = Sentences(backbone, batch_size=20, rows_of_train=40)
    run.fit(fitted, data, ckpt_path=resume, weights_only=True)
    if epochs == EPOCHS:
        assert planned.pruned, "the graph has seen gates that are closed"
    return losses.seen


def state(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow
def test_one_graph_trains_over_the_whole_schedule(tmp_path, backbone):
    plain = fit(tmp_path / "plain", module(backbone), backbone)
    compiled = fit(tmp_path / "compiled", module(backbone, WHOLE), backbone)
    assert counters["stats"]["unique_graphs"] == 2, "one with gradients, one for validation"
    assert not counters["graph_break"]
    assert compiled == pytest.approx(plain, abs=1e-4)

    names = [state(tmp_path / kind / "epoch=3.ckpt").keys() for kind in ("plain", "compiled")]
    assert names[0] == names[1]
    half = tmp_path / "compiled" / "epoch=1.ckpt"
    resumed = fit(tmp_path / "resumed", module(backbone), backbone, resume=half)
    assert resumed == pytest.approx(compiled[len(compiled) // 2 :], abs=1e-4)
    half = tmp_path / "plain" / "epoch=1.ckpt"
    resumed = fit(tmp_path / "again", module(backbone, WHOLE), backbone, resume=half)
    assert resumed == pytest.approx(plain[len(plain) // 2 :], abs=1e-4)

    loaded = PELTModule.load_from_checkpoint(tmp_path / "compiled" / "epoch=3.ckpt")
    assert loaded.compiling == WHOLE, "from its hyperparameters"


@pytest.mark.slow
def test_a_module_that_is_compiled_as_a_whole(tmp_path, backbone):
    once = {"epochs": 1, "limit_val_batches": 0}
    plain = fit(tmp_path / "plain", module(backbone), backbone, **once)
    whole = torch.compile(module(backbone), backend="eager")
    assert fit(tmp_path / "whole", whole, backbone, **once) == pytest.approx(plain, abs=1e-4)
    saved = [state(tmp_path / kind / "epoch=0.ckpt") for kind in ("plain", "whole")]
    assert saved[0].keys() == saved[1].keys()


@pytest.mark.slow
def test_predictions_and_adapters_of_both_kinds(tmp_path, backbone):
    """A compiled model predicts as a plain one does, and each loads the adapters of the other."""
    data = Sentences(backbone, batch_size=20, rows_of_train=40)
    modules = {"plain": module(backbone), "compiled": module(backbone, WHOLE)}
    for kind, fitted in modules.items():
        fit(tmp_path / kind, fitted, backbone, epochs=1, limit_val_batches=0)
        save_adapters(fitted, tmp_path / kind / "adapters")
    predicted = {}
    for kind, other in (("plain", "compiled"), ("compiled", "plain")):
        loaded = module(backbone, modules[other].compiling)
        loaded.configure_model()
        load_adapters(loaded, tmp_path / kind / "adapters")
        rows = [trainer(tmp_path).predict(one, data) for one in (modules[kind], loaded)]
        first, second = (
            [p for batch in batches for row in batch for p in row["probabilities"].values()]
            for batches in rows
        )
        assert second == pytest.approx(first, abs=1e-5)
        predicted[kind] = first
    assert predicted["compiled"] == pytest.approx(predicted["plain"], abs=1e-4)


@pytest.mark.slow
def test_a_strangers_module_that_is_compiled_as_a_whole(tmp_path):
    nets = {}
    for kind in ("plain", "whole"):
        stranger = Stranger()
        fitted = torch.compile(stranger, backend="eager") if kind == "whole" else stranger
        trainer(tmp_path / kind, PELTCallback(UniPELT())).fit(fitted, loader())
        nets[kind] = stranger.net.state_dict()
    assert nets["plain"].keys() == nets["whole"].keys()
    assert any("pelt" in name for name in nets["plain"])
    torch.testing.assert_close(nets["whole"], nets["plain"], rtol=0, atol=1e-4)


def test_an_unknown_option_is_refused_with_the_nearest(backbone):
    with pytest.raises(ValueError, match=r"'dynamics'.*did you mean 'dynamic'"):
        module(backbone, {"dynamics": True})
