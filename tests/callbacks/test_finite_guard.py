"""A bad number stops the fit before the weights see it, and the right method is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from callbacks.tiny import Tiny, all_equal, copies, loader, trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from lightning_pelt.callbacks.finite_guard import FiniteGuard, NonFiniteError


class Breaks(Tiny):
    """Its loss is multiplied by ``factor`` from ``step`` on."""

    def __init__(self, step: int, factor: float = float("nan"), **options) -> None:
        super().__init__(**options)
        self.step, self.factor = step, factor

    def training_step(self, batch, batch_idx):
        loss = self(batch)
        return loss * self.factor if self.global_step >= self.step else loss


class Trained(Callback):
    """A copy of all trained weights at the start of each batch."""

    def on_train_batch_start(self, trainer, pl_module, *args):
        self.weights = copies([p for p in pl_module.parameters() if p.requires_grad])

    def now(self, module):
        return copies([p for p in module.parameters() if p.requires_grad])


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_the_step_is_named_and_not_taken(tmp_path, factor):
    module, trained = Breaks(2, factor), Trained()
    with pytest.raises(NonFiniteError, match=r"the loss is (nan|inf) at step 2 \(epoch 0, rank 0"):
        trainer(tmp_path, FiniteGuard(), trained).fit(module, loader(4))
    assert all_equal(trained.weights, trained.now(module))


def test_the_method_whose_weights_broke_is_named(tmp_path):
    class Poison(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                with torch.no_grad():
                    pl_module.attachment.parameter_groups()["adapter"][0].view(-1)[0] = float("nan")

    with pytest.raises(NonFiniteError, match="the weights of 'adapter' are not finite"):
        trainer(tmp_path, Poison(), FiniteGuard()).fit(Tiny(), loader(3))


def test_the_first_gate_in_the_network_that_broke_is_named(tmp_path):
    class Poison(Callback):
        """What block 0's adapter reads: everything after it is NaN as well."""

        def on_train_start(self, trainer, pl_module):
            layer = pl_module.net.bert.encoder.layer[0].intermediate
            layer.register_forward_hook(lambda module, args, out: out * float("nan"))

    with pytest.raises(NonFiniteError, match=r"not finite is 0[01]/\S+, of '\w+'") as raised:
        trainer(tmp_path, Poison(), FiniteGuard()).fit(Tiny(), loader(1))
    assert "00/lora" not in str(raised.value), "block 0's attention came before the NaN"


def test_what_grew_most_is_named_when_all_is_finite(tmp_path):
    class Grow(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                with torch.no_grad():
                    for weight in pl_module.attachment.parameter_groups()["lora"]:
                        weight.mul_(50)

    module = Breaks(1)
    with pytest.raises(NonFiniteError, match=r"grew most .* are those of 'lora'"):
        trainer(tmp_path, Grow(), FiniteGuard()).fit(module, loader(2))


def test_a_bad_gradient_of_a_good_loss_is_caught(tmp_path):
    class Root(Tiny):
        def training_step(self, batch, batch_idx):
            head = self.attachment.parameter_groups()["head"][0]
            return self(batch) + (head - head.detach()).pow(2).sum().sqrt()  # 0, slope 0/0

    module, trained = Root(), Trained()
    with pytest.raises(NonFiniteError, match=r"a gradient is .* gradients of 'head' are not"):
        trainer(tmp_path, FiniteGuard(), trained).fit(module, loader(1))
    assert all_equal(trained.weights, trained.now(module))


def test_a_bad_loss_among_accumulated_ones_is_caught(tmp_path):
    class Second(Tiny):
        def training_step(self, batch, batch_idx):
            return self(batch) * (float("nan") if batch_idx == 0 else 1.0)

    with pytest.raises(NonFiniteError, match="at step 0"):
        trainer(tmp_path, FiniteGuard(), accumulate_grad_batches=2).fit(Second(), loader(2))


def test_a_late_check_still_finds_it(tmp_path):
    with pytest.raises(NonFiniteError, match="at step 3"):
        trainer(tmp_path, FiniteGuard(every_n_steps=3)).fit(Breaks(1), loader(5))


def test_a_good_fit_is_left_alone(tmp_path):
    fit = trainer(tmp_path, FiniteGuard())
    fit.fit(Tiny(), loader(3))
    assert fit.global_step == 3


def test_no_checkpoint_is_written_of_the_bad_state(tmp_path):
    """Neither of the two ways in which Lightning saves on an exception, and the good one stays."""
    regular = ModelCheckpoint(
        tmp_path / "saved", filename="{step}", every_n_train_steps=1, save_top_k=1
    )
    failing = ModelCheckpoint(
        tmp_path / "failed", save_on_exception=True, every_n_epochs=5, save_last=True
    )
    dying = OnExceptionCheckpoint(tmp_path / "died")
    fit = trainer(tmp_path, FiniteGuard(), regular, failing, dying, enable_checkpointing=True)
    with pytest.raises(NonFiniteError) as raised:
        fit.fit(Breaks(2), loader(4))
    (kept,) = (tmp_path / "saved").iterdir()
    assert f"Last checkpoint: {kept}" in str(raised.value)
    saved = torch.load(kept, weights_only=True)
    assert saved["global_step"] == 2
    assert all(torch.isfinite(t).all() for t in saved["state_dict"].values())
    for folder in (tmp_path / "failed", tmp_path / "died"):
        assert not list(folder.glob("*.ckpt"))


def test_without_a_checkpoint_it_says_so(tmp_path):
    with pytest.raises(NonFiniteError, match="No checkpoint yet"):
        trainer(tmp_path, FiniteGuard()).fit(Breaks(0), loader(1))


def test_a_module_without_attachment_is_guarded_too(tmp_path):
    class Plain(Breaks):
        def configure_model(self):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(NonFiniteError, match="at step 1"):
        trainer(tmp_path, FiniteGuard()).fit(Plain(1), loader(2))


class BothStop(FiniteGuard):
    """Notes in a file of its rank at which step it stopped."""

    def on_exception(self, trainer, pl_module, exception):
        path = Path(trainer.default_root_dir) / f"rank{trainer.global_rank}"
        path.write_text(str(exception))


class BreaksOnOne(Breaks):
    def training_step(self, batch, batch_idx):
        loss = self(batch)
        return loss * float("nan") if (self.global_step, self.global_rank) == (1, 1) else loss


@pytest.mark.slow
def test_every_process_stops_at_the_step_that_broke_one(tmp_path):
    fit = trainer(tmp_path, BothStop(), strategy="ddp_fork", devices=2)
    with pytest.raises(Exception, match="at step 1"):
        fit.fit(BreaksOnOne(1), loader(4))
    # The launcher ends the other process as soon as one has failed, perhaps before it could write.
    stopped = sorted(path.read_text() for path in tmp_path.glob("rank*"))
    assert stopped
    assert all("at step 1" in text for text in stopped)


def test_every_n_steps_must_be_a_step():
    with pytest.raises(ValueError, match="every_n_steps=0"):
        FiniteGuard(every_n_steps=0)
