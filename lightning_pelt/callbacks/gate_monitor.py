"""Monitor the gates: curves in training, pictures per validation, a table at the end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from tabulate import tabulate
from torch import Tensor

from lightning_pelt.callbacks._attached import attached_to
from lightning_pelt.callbacks._gate_means import (
    GateMeans,
    log_scalars,
    logging_step,
    weighted,
)
from lightning_pelt.callbacks._heat_map import show, show_over_time
from lightning_pelt.callbacks._packed_examples import examples_in
from lightning_pelt.callbacks.gate_schedule import GateSchedule
from lightning_pelt.reports import figures as plots
from lightning_pelt.reports.gate_history import CLOSED, GateHistory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_pelt.methods.gate import GateView


class GateMonitor(Callback):
    """Log the values of the gates.

    Every ``every_n_steps`` steps each logger gets, from the last training batch,

    - ``gate/<block>/<site>``: the gate's mean over the batch,
    - ``gate/mean/<method>``: the mean over the method's gates,
    - ``gate/spread/<method>``: the standard deviation over the examples of the batch, averaged over
      the method's gates.

    Each example of packed rows counts once.

    With several attached models in the module, ``<block>`` starts with the path of the model, as in
    ``gate/encoder.07/lora.query``, and the numbers of a method cover all models.

    A gate per token is first averaged over its tokens. Logging reads one small tensor and
    synchronizes with the device once; ``forward`` does not synchronize. Under data parallelism the
    curves show the batch of rank zero, and the heat map and the table show all ranks.

    Args:
        every_n_steps: optimizer steps between two readings.
        heatmap: after each validation, draw the means of the gates by block and site. The latest
            picture is ``gates.png`` in the folder of the run, or below its URL. W&B, TensorBoard
            and MLflow keep one for each validation, and other loggers have them as files
            ``media/gate/heatmap/<step>.png``. If that fails, a warning says so and training goes
            on.
        table: print the last means at the end of fit.
        over_time: draw the readings of the curves by block and optimizer step, as
            ``gates_over_time.png`` and ``gate/over_time``: at the end of a fit, and after a
            validation if the steps are at least twice those of the last picture, for one takes half
            a second. About 200 readings are kept, in checkpoints too, so that a resumed run goes on
            with them.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_pelt import GateMonitor
        >>> trainer = Trainer(callbacks=[GateMonitor(every_n_steps=50)], logger=False)
        >>> trainer.fit(module, data)  # doctest: +SKIP
    """

    def __init__(
        self,
        every_n_steps: int = 10,
        heatmap: bool = True,
        table: bool = True,
        over_time: bool = True,
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps = every_n_steps
        self.heatmap = heatmap
        self.table = table
        self.over_time = over_time
        self.latest: dict[str, float] = {}  # the last means, by gate name
        self.history = GateHistory()
        self._gates: dict[str, GateView] = {}
        self._means: GateMeans | None = None
        self._last_step = -1
        self._drawn_step = -1  # of the last reading in the picture over time
        self._pictures: dict[str, str] = {}  # files, by what they show

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._gates = attached_to(pl_module, self).gates
        self._drawn_step, self._pictures = -1, {}
        if trainer.ckpt_path is None:
            self._last_step = -1
        if not self._gates:
            rank_zero_warn(
                "GateMonitor has no gates to monitor: no method of this plan has a gate. Give a "
                "method gate=Gate(), or use a gated plan such as UniPELT()."
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
    ) -> None:
        step = logging_step(trainer)
        if step % self.every_n_steps or step == self._last_step:
            return  # the same step again: a later batch of an accumulated gradient
        self._last_step = step
        seen = {name: gate for name, gate in self._gates.items() if gate.value is not None}
        if not seen:
            return
        means, scalars = summarise(seen, batch)
        if self._means is None:
            self.latest = means
        if self.over_time:
            self.history.add(step, {n: _reading(n, g, means) for n, g in self._gates.items()})
        log_scalars(trainer, scalars)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._means = None
        if not trainer.sanity_checking:
            gates = attached_to(pl_module, self).gates
            self._means = GateMeans(gates, pl_module.device) if gates else None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        if self._means is not None:
            self._means.update(batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._means is None:
            return
        means, self._means = self._means.compute(trainer), None
        self.latest = means or self.latest
        folder = _folder_to_write(trainer)
        if self.heatmap and means and folder is not None:
            self._keep("Heat map", show(trainer, means, f"{folder}/gates.png"))
        steps = self.history.steps
        if trainer.state.fn == TrainerFn.FITTING and steps and steps[-1] >= 2 * self._drawn_step:
            self._draw_over_time(trainer, folder)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw_over_time(trainer, _folder_to_write(trainer))

    def _draw_over_time(self, trainer: Trainer, folder: str | None) -> None:
        """Draw the history, if it has readings that the last picture lacks."""
        history = self.history
        if not self.over_time or folder is None or len(history) < 2:
            return
        if not self._gates or history.steps[-1] == self._drawn_step:
            return
        self._drawn_step = history.steps[-1]
        schedules = [c for c in trainer.callbacks if isinstance(c, GateSchedule)]  # type: ignore[attr-defined]
        pruned = [name for schedule in schedules for name in schedule.pruned]
        path = f"{folder}/gates_over_time.png"
        self._keep("Gates over time", show_over_time(trainer, history, pruned, path))

    def _keep(self, what: str, path: str | None) -> None:
        if path is None:
            self._pictures.pop(what, None)
        else:
            self._pictures[what] = path

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.table and self.latest and trainer.is_global_zero:
            print(f"\nMean gate, 0 closed to 1 open\n\n{gate_table(self.latest)}\n", flush=True)
        for what, path in self._pictures.items():
            print(f"{what}: {path}\n", flush=True)
        self._gates = {}

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step, "history": self.history.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["last_step"]
        if "history" in state_dict:  # checkpoints of 0.1 have none
            self.history.load_state_dict(state_dict["history"])


def _folder_to_write(trainer: Trainer) -> str | None:
    """The folder of pictures, in the process that writes them. Every rank must ask for it."""
    folder = trainer.log_dir or trainer.default_root_dir
    writes = trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
    return str(folder) if writes else None


def _reading(name: str, gate: GateView, means: Mapping[str, float]) -> float:
    return CLOSED if gate.open == 0 else means.get(name, math.nan)


def summarise(
    gates: Mapping[str, GateView], batch: Any = None
) -> tuple[dict[str, float], dict[str, float]]:
    """The means by gate, and all scalars by the names they are logged under.

    Synchronizes with the device once.

    Args:
        gates: by name; all have been evaluated.
        batch: on which they were. Each example counts once, also where a row has several.
    """
    packed = examples_in(batch)
    values = [gate.value for gate in gates.values()]
    pairs = [_std_and_mean(*weighted(v, packed)) for v in values if v is not None]
    numbers = torch.stack([pair.to(pairs[0].device) for pair in pairs]).tolist()
    means = {name: mean for name, (_, mean) in zip(gates, numbers, strict=True)}
    scalars = {f"gate/{name}": mean for name, mean in means.items()}
    of = [gate.method for gate in gates.values()]
    for method in dict.fromkeys(of):
        own = [pair for name, pair in zip(of, numbers, strict=True) if name == method]
        scalars[f"gate/mean/{method}"] = sum(mean for _, mean in own) / len(own)
        scalars[f"gate/spread/{method}"] = sum(spread for spread, _ in own) / len(own)
    return means, scalars


def _std_and_mean(values: Tensor, weights: Tensor) -> Tensor:
    """(2,), of values (n,) with weights (n,)."""
    total = weights.sum().clamp(min=1)
    mean = (values * weights).sum() / total
    return torch.stack((((values - mean).square() * weights).sum().div(total).sqrt(), mean))


def gate_table(gates: Mapping[str, float]) -> str:
    """A plain table of gates named ``"<block>/<site>"``: a row per block, a column per site."""
    blocks, sites = plots.grid(gates)
    rows = []
    for block in blocks:
        means = [gates.get(f"{block}/{site}") for site in sites]
        rows.append([block, *("" if mean is None else f"{mean:.3f}" for mean in means)])
    align = ("left", *["right"] * len(sites))
    return tabulate(rows, ["block", *sites], disable_numparse=True, colalign=align)
