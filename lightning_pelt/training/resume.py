"""Continue a run exactly where its checkpoint was written.

Lightning restarts its loops from their counters, which do not tell all places in a run from each
other. Plain Lightning loses the validation after the last saved batch, counts an epoch twice or not
at all, follows a stopped epoch with the next one, and loses accumulated gradients. Here a
checkpoint holds counters that have one meaning, and beside them what counters cannot say.

This file and ``position.py`` alone use the private state of Lightning's loops.
``tests/training/test_resume*.py`` resume a run from every step, twice.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lightning_pelt.training.position import Position, validation_is_due
from lightning_pelt.utils.same_kind import same_kind

KEY = "resume"  # of the record in a checkpoint


class Resume:
    """Writes the place of a run into checkpoints, and starts Lightning's loops from there.

    The owner, a module or a callback, calls the methods in its hooks of these names.
    """

    def __init__(self) -> None:
        self._record: dict[str, Any] = {}
        self._begins = False  # in the middle of an epoch
        self._extra_steps = 0  # that keep a finished fit going for the end of its last epoch

    def on_save_checkpoint(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Replace the counters of the fit loop, and add what they cannot say."""
        here = Position.of(trainer)
        fit = checkpoint["loops"]["fit_loop"]
        begun = here.epoch + (here.batches > 0)
        fit["epoch_progress"] = _progress(here.epoch, begun=begun, total=here.epoch)
        fit["epoch_loop.batch_progress"] = {
            **_progress(here.batches, begun=here.batches, total=here.total),
            "is_last_batch": here.last,
        }
        fit["epoch_loop.state_dict"]["_batches_that_stepped"] = here.logged
        checkpoint[KEY] = {
            "step": trainer.global_step,
            "inside": here.inside,
            "validates": here.validates,
            "plateau": here.plateau,
            "metrics": {name: v.detach().cpu() for name, v in trainer.callback_metrics.items()},
            "gradients": _gradients(trainer) if here.accumulating else {},
        }

    def on_load_checkpoint(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Read what ``on_save_checkpoint`` has added."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._record = checkpoint.get(KEY, {})
        if trainer.strategy.restore_checkpoint_after_setup:  # and after `on_fit_start`
            self._keep_going(trainer)

    def on_fit_start(self, trainer: Trainer) -> None:
        """Prepare the loops for the counters, which Lightning restores next."""
        if trainer.ckpt_path is None:
            self._record = {}  # of an earlier fit that failed
            return
        # An estimate of the number of steps in `configure_optimizers` has set up the loader, whose
        # position Lightning restores when it sets it up.
        trainer.fit_loop._combined_loader = None
        self._keep_going(trainer)

    def _keep_going(self, trainer: Trainer) -> None:
        """Let a run validate after its last step and end its epoch, if it has not yet.

        Lightning would do nothing, because all steps are taken.
        """
        if self._record.get("inside") and self._record["step"] >= trainer.max_steps > 0:
            self._extra_steps = 1
            trainer.fit_loop.epoch_loop.max_steps += 1

    def on_train_start(self, trainer: Trainer) -> None:
        """Bring the loops to the recorded place."""
        record, self._record = self._record, {}
        fit = trainer.fit_loop
        if not record:
            return
        device = trainer.strategy.root_device
        metrics: dict[str, Tensor] = record["metrics"]
        trainer.callback_metrics.update({name: v.to(device) for name, v in metrics.items()})
        if record["plateau"]:
            _step_plateau_schedulers(trainer)
        if not fit.restarting:
            return
        fit._restarting = False
        if fit.restarted_mid_epoch:
            self._enter_epoch(trainer, record)
        else:  # with max_steps Lightning restarts between epochs too
            fit.epoch_loop._restarting = fit.epoch_loop.val_loop._restarting = False

    def _enter_epoch(self, trainer: Trainer, record: dict[str, Any]) -> None:
        loop = trainer.fit_loop.epoch_loop
        self._begins = True
        _restore_gradients(trainer, record["gradients"])
        if record["validates"]:
            loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
            loop.val_loop.batch_progress.reset()
        if due := validation_is_due(trainer):  # the loop ends its last batch again, and counts it
            loop._batches_that_stepped -= not loop._should_accumulate()
        if self._extra_steps or (loop._num_ready_batches_reached() and not due):
            _exhaust(trainer.fit_loop._data_fetcher)

    def on_train_batch_start(self, trainer: Trainer) -> None:
        """Before the first batch, set the number of accumulated batches that a schedule gives.

        The schedule sets it at the start of an epoch, and expects 1 when training starts.
        """
        begins, self._begins = self._begins, False
        if begins:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if same_kind(callback, GradientAccumulationScheduler):
                    callback.on_train_epoch_start(trainer)

    def on_train_epoch_end(self, trainer: Trainer) -> None:
        """End a fit whose steps were all taken before it was resumed."""
        trainer.fit_loop.epoch_loop.max_steps -= self._extra_steps
        self._extra_steps = 0


def _progress(done: int, *, begun: int, total: int) -> dict[str, dict[str, int]]:
    """Counters of a loop: ``done`` of its current run, ``begun - done`` of them more begun."""
    return {
        part: {
            "ready": number + begun - done,
            "started": number + begun - done,
            "processed": number,
            "completed": number,
        }
        for part, number in (("total", total), ("current", done))
    }


def _exhaust(fetcher: Any) -> None:
    """End the epoch: a loader without a state would start with its first batch."""
    fetcher.reset()
    fetcher.done = True


def _step_plateau_schedulers(trainer: Trainer) -> None:
    for config in trainer.lr_scheduler_configs:
        metric = trainer.callback_metrics.get(config.monitor or "")
        read = config.interval == "epoch" and trainer.current_epoch % config.frequency == 0
        if config.reduce_on_plateau and read and metric is not None:
            trainer.lightning_module.lr_scheduler_step(config.scheduler, metric)


def _gradients(trainer: Trainer) -> dict[str, Tensor]:
    parameters = trainer.lightning_module.named_parameters()
    return {name: p.grad.detach().cpu() for name, p in parameters if p.grad is not None}


def _restore_gradients(trainer: Trainer, gradients: dict[str, Tensor]) -> None:
    for name, parameter in trainer.lightning_module.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name].to(parameter.device)
