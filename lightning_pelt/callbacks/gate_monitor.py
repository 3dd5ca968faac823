"""Watch the gates: curves while training, a heat map per validation, a table at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_pelt import plots
from lightning_pelt.callbacks._reading import (
    GateMeans,
    aligned,
    attachment_of,
    log_scalars,
    logging_step,
    per_example,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lightning_pelt.gate import GateView

HEATMAP = "gate/heatmap"


class GateMonitor(Callback):
    """Log what the gates do.

    Every ``every_n_steps`` steps each logger gets, from the last training batch,

    - ``gate/<block>/<site>``: the gate's mean over the batch,
    - ``gate/mean/<method>``: the mean over the method's gates,
    - ``gate/spread/<method>``: how differently examples are gated: the standard deviation over the
      batch, averaged over the method's gates.

    A gate per token is averaged over its tokens first. Reading costs one small tensor and one wait
    for the device per logging step, none inside ``forward``. Under data parallelism the curves show
    rank zero's part of the batch; the heat map and the table show all ranks'.

    Args:
        every_n_steps: optimizer steps between two readings.
        heatmap: after each validation draw the gates' means over it, blocks x sites, to W&B and
            TensorBoard and, whatever the logger, to ``gates.png`` in the run's folder.
        table: print the last means at the end of fit.
    """

    def __init__(self, every_n_steps: int = 10, heatmap: bool = True, table: bool = True) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps = every_n_steps
        self.heatmap = heatmap
        self.table = table
        self.latest: dict[str, float] = {}  # gate name -> mean, of the last validation or reading
        self._gates: list[GateView] = []
        self._means: GateMeans | None = None
        self._last_step = -1
        self._picture: Path | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._gates = list(attachment_of(pl_module, self).gates.values())
        self._last_step = -1
        if not self._gates:
            rank_zero_warn(
                "GateMonitor has nothing to watch: no method of this plan has a gate. Give one "
                "gate=Gate(), or use a gated plan such as UniPELT()."
            )

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        step = logging_step(trainer)
        if step % self.every_n_steps or step == self._last_step:
            return  # the same step again is a batch of one accumulated gradient
        self._last_step = step
        seen = [gate for gate in self._gates if gate.value is not None]
        if not seen:
            return
        means, scalars = summarise(seen)
        if self._means is None:
            self.latest = means
        log_scalars(trainer, scalars)

    # -- the validation's heat map ------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._means = None
        if not trainer.sanity_checking:
            gates = attachment_of(pl_module, self).gates.values()
            self._means = GateMeans(gates, pl_module.device) if gates else None

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        if self._means is not None:
            self._means.update()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._means is None:
            return
        means, self._means = self._means.compute(trainer), None
        self.latest = means or self.latest
        folder = trainer.log_dir or trainer.default_root_dir  # every rank must ask
        writes = trainer.is_global_zero and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if self.heatmap and means and writes:
            figure = plots.gate_heatmap(means)
            self._picture = Path(folder) / "gates.png"
            plots.save(figure, self._picture)
            for logger in trainer.loggers:
                _log_image(logger, plots.pixels(figure), logging_step(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.table and self.latest and trainer.is_global_zero:
            print(f"\nMean gate, 0 closed to 1 open\n\n{tabulate(self.latest)}\n", flush=True)
        if self._picture is not None:
            print(f"The same as a picture: {self._picture}\n", flush=True)
        self._gates = []


def summarise(gates: Iterable[GateView]) -> tuple[dict[str, float], dict[str, float]]:
    """The means by gate, and all scalars by the names they are logged under; waits once."""
    gates = list(gates)
    device = gates[0].value.device  # type: ignore[union-attr]
    pairs = [
        torch.stack(torch.std_mean(per_example(gate.value), correction=0))
        for gate in gates
        if gate.value is not None
    ]
    numbers = torch.stack([pair.to(device) for pair in pairs]).tolist()
    means = {gate.name: mean for gate, (_, mean) in zip(gates, numbers, strict=True)}
    scalars = {f"gate/{name}": mean for name, mean in means.items()}
    for method in dict.fromkeys(gate.method for gate in gates):
        own = [pair for gate, pair in zip(gates, numbers, strict=True) if gate.method == method]
        scalars[f"gate/mean/{method}"] = sum(mean for _, mean in own) / len(own)
        scalars[f"gate/spread/{method}"] = sum(spread for spread, _ in own) / len(own)
    return means, scalars


def tabulate(gates: Mapping[str, float]) -> str:
    """A plain table of gates by name, ``"<block>/<site>"``: a row per block, a column per site."""
    blocks, sites = plots.grid(gates)
    rows = [["block", *sites]]
    for block in blocks:
        cells = [gates.get(f"{block}/{site}") for site in sites]
        rows.append([block, *("" if cell is None else f"{cell:.3f}" for cell in cells)])
    return aligned(rows)


def _log_image(logger: Logger, pixels: Any, step: int) -> None:
    if isinstance(logger, WandbLogger):
        logger.log_image(HEATMAP, [pixels], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(HEATMAP, pixels, step, dataformats="HWC")
