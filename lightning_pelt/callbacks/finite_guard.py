"""Stop at the first NaN or infinite loss, before the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_pelt.attach import find_attachments
from lightning_pelt.callbacks._attached import Attached
from lightning_pelt.utils.same_kind import same_kind

# The usual scale of an initial weight: the reference for the growth of weights that start at zero.
TYPICAL_WEIGHT = 0.02


class NonFiniteError(RuntimeError):
    """The loss, or a gradient of a finite loss, is NaN or infinite."""


class FiniteGuard(Callback):
    """Stop at the first NaN or infinite loss, before the optimizer step.

    The callback checks the loss and its gradients after backward. The weights stay those of the
    last finite step, and no further checkpoint is saved, not even one on an exception. Under data
    parallelism gradients are already reduced, so every rank stops at the same step. A scaler for
    mixed precision skips steps whose gradients overflow; with a scaler only the loss is checked.

    Each check computes the largest gradient and synchronizes with the device once.

    Args:
        every_n_steps: optimizer steps between two checks. With more than 1, a loss that is not
            finite is found up to that many steps late, and may have reached the weights.

    Raises:
        NonFiniteError: a loss or a gradient is not finite. The message names the step, the method
            that failed first, and the last checkpoint.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_pelt import FiniteGuard
        >>> trainer = Trainer(callbacks=[FiniteGuard()], logger=False)
        >>> trainer.fit(module, data)  # doctest: +SKIP
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps} must be at least 1")
        self.every_n_steps = every_n_steps
        self._loss: Tensor | None = None  # sum since the last check
        self._norms: dict[str, float] = {}  # of each method's weights at the start of fit

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._loss = None
        self._norms = {name: _norm(weights) for name, weights in _groups(pl_module).items()}

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        loss = loss.detach()
        self._loss = loss if self._loss is None else self._loss + loss

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if trainer.global_step % self.every_n_steps or self._loss is None:
            return
        loss, self._loss = self._loss, None
        good = torch.isfinite(loss).all()
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            good = good & _all_finite(_gradients(optimizer)).to(good.device)
        if not good.item():
            _save_nothing_more(trainer)
            raise NonFiniteError(self._report(trainer, pl_module, loss))

    def _report(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> str:
        finite = bool(torch.isfinite(loss).all())
        what = "a gradient is not finite" if finite else f"the loss is {float(loss.sum()):g}"
        path = _last_checkpoint(trainer)
        saved = f"Last checkpoint: {path}" if path else "No checkpoint yet"
        return (
            f"{what} at step {trainer.global_step} (epoch {trainer.current_epoch}, rank "
            f"{trainer.global_rank}): {self._first_failure(pl_module, finite)}. The optimizer has "
            f"not taken this step. {saved}. Try a smaller learning rate for that method, "
            "gradient_clip_val=1.0 or precision='32-true'."
        )

    def _first_failure(self, pl_module: LightningModule, finite_loss: bool) -> str:
        groups = _groups(pl_module)
        for name, weights in groups.items():
            if not _all_finite(weights).item():
                return f"the weights of {name!r} are not finite"
        for name, gate in Attached(find_attachments(pl_module)).gates.items():
            if gate.value is not None and not _all_finite([gate.value]).item():
                return f"the first gate that is not finite is {name}, of {gate.method!r}"
        if finite_loss:
            for name, weights in groups.items():
                if not _all_finite(p.grad for p in weights if p.grad is not None).item():
                    return f"the gradients of {name!r} are not finite"
        return self._largest_growth(groups)

    def _largest_growth(self, groups: dict[str, list[nn.Parameter]]) -> str:
        growth: dict[str, tuple[float, float, float]] = {}
        for name, weights in groups.items():
            before, now = self._norms.get(name, 0.0), _norm(weights)
            typical = TYPICAL_WEIGHT * math.sqrt(sum(_local(p).numel() for p in weights))
            growth[name] = (now / max(before or typical, 1e-12), before, now)
        if not growth:
            return "no method is attached"
        name = max(growth, key=lambda key: growth[key][0])
        _, before, now = growth[name]
        return (
            "weights and gates are finite; the weights that grew most since the start of fit are "
            f"those of {name!r}, norm {before:.3g} -> {now:.3g}"
        )


def _groups(pl_module: LightningModule) -> dict[str, list[nn.Parameter]]:
    by_path = find_attachments(pl_module)
    if by_path:
        return Attached(by_path).parameter_groups()
    trained = [p for p in pl_module.parameters() if p.requires_grad]
    return {"model": trained} if trained else {}


def _gradients(optimizer: Optimizer) -> Iterable[Tensor]:
    for group in optimizer.param_groups:
        yield from (p.grad for p in group["params"] if p.grad is not None)


def _local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor: the report must not wait for the other ranks."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether every entry is finite, as a tensor, without a synchronization."""
    parts = [part for t in tensors if (part := _local(t.detach())).numel()]
    if not parts:
        return torch.tensor(True)
    largest = torch.nn.utils.get_total_norm(parts, norm_type=math.inf)
    return torch.isfinite(largest)


def _norm(weights: Iterable[Tensor]) -> float:
    parts = [_local(weight.detach()) for weight in weights]
    return float(torch.nn.utils.get_total_norm(parts)) if parts else 0.0


def _save_nothing_more(trainer: Trainer) -> None:
    """Disable checkpoints on an exception: they would save the state that is not finite."""
    callbacks: list[Any] = list(trainer.checkpoint_callbacks)
    for callback in callbacks:
        if same_kind(callback, ModelCheckpoint):
            callback.save_on_exception = False
    keep: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    trainer.callbacks = [c for c in keep if not same_kind(c, OnExceptionCheckpoint)]  # type: ignore[attr-defined]


def _last_checkpoint(trainer: Trainer) -> str:
    callbacks: list[Any] = list(trainer.checkpoint_callbacks)
    for callback in callbacks:
        if same_kind(callback, ModelCheckpoint):
            path = callback.last_model_path or callback._last_checkpoint_saved
            if path or callback.best_model_path:
                return path or callback.best_model_path
    return str(trainer.ckpt_path or "")
