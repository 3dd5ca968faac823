"""A resumed fit has its own rates, schedule and optimizer options, not those of its checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from small import LABELS, Sentences, bert

from lightning_pelt import HeadOnly, LoRA, PELTModule, Plan, Regression

STEPS = 10  # of two epochs of twenty rows in batches of four


class Reversed(Sentences):
    """The same classes in the opposite order."""

    labels = LABELS[::-1]  # type: ignore[assignment]


class Values(Sentences):
    """Numbers instead of classes."""

    def __init__(self, backbone: str) -> None:
        super().__init__(backbone, target="value")


class Rates(Callback):
    """The learning rate of every group at every step."""

    def __init__(self) -> None:
        self.seen: dict[int, list[float]] = {}
        self.options: dict[str, Any] = {}

    def on_before_optimizer_step(self, run: Any, module: Any, optimizer: Any) -> None:
        self.seen[run.global_step] = [group["lr"] for group in optimizer.param_groups]
        self.options = dict(optimizer.param_groups[0])


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("backbone") / "bert")


@pytest.fixture(scope="module")
def checkpoint(backbone: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fourth step of ten, at the rate 0.01 with patience 3."""
    folder = tmp_path_factory.mktemp("checkpoint")
    run = fit(folder, backbone, callbacks=[EarlyStopping("val/loss", patience=3)], stop=4)
    run.save_checkpoint(folder / "four.ckpt")
    return folder / "four.ckpt"


def fit(
    folder: Path,
    backbone: str,
    *,
    callbacks: list[Callback] | None = None,
    ckpt_path: Path | None = None,
    stop: int | None = None,
    epochs: int = 2,
    plan: Plan | None = None,
    data: Callable[[str], Sentences] = Sentences,
    **options: Any,
) -> Any:
    class Stop(Callback):
        def on_train_batch_end(self, run: Any, *_: Any) -> None:
            run.should_stop = run.global_step == stop

    given = {"lr": 0.01, "warmup": 0.2, "labels": LABELS, **options}
    module = PELTModule(backbone, plan or Plan.uniform(LoRA(r=2)), **given)
    run = trainer(folder, Stop(), *(callbacks or []), max_epochs=epochs)
    run.fit(module, data(backbone), ckpt_path=ckpt_path)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"lr": 1e-7},
        {"lrs": {"head": 0.5}},
        {"warmup": 0.6},
        {"epochs": 3},
        {"lr": 1e-3, "lrs": {"lora": 0.2}, "warmup": 0.0},
    ],
    ids=["rate", "rate of a group", "warmup", "length", "several"],
)
def test_the_rates_are_those_of_an_uninterrupted_run(tmp_path, backbone, checkpoint, given):
    whole, resumed = Rates(), Rates()
    fit(tmp_path / "whole", backbone, callbacks=[whole], **given)
    fit(tmp_path / "resumed", backbone, callbacks=[resumed], ckpt_path=checkpoint, **given)
    last = 15 if "epochs" in given else STEPS
    assert list(resumed.seen) == list(range(4, last))
    assert resumed.seen == {step: whole.seen[step] for step in resumed.seen}


@pytest.mark.slow
def test_options_of_the_optimizer_hold_and_its_averages_are_restored(
    tmp_path, backbone, checkpoint
):
    class First(Callback):
        state: Any = None

        def on_train_start(self, run: Any, module: Any) -> None:
            self.state = deepcopy(run.optimizers[0].state_dict()["state"])

    rates, first = Rates(), First()
    adam = partial(torch.optim.AdamW, betas=(0.5, 0.6), eps=1e-3)
    given = {"optimizer": adam, "weight_decay": 0.25}
    fit(tmp_path, backbone, callbacks=[rates, first], ckpt_path=checkpoint, **given)
    found = {name: rates.options[name] for name in ("betas", "eps", "weight_decay")}
    assert found == {"betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.25}
    saved = torch.load(checkpoint, weights_only=True)["optimizer_states"][0]["state"]
    assert len(saved) == len(first.state) > 0
    for then, now in zip(saved.values(), first.state.values(), strict=True):
        assert then["step"] == 4
        assert torch.equal(then["exp_avg"], now["exp_avg"])


@pytest.mark.slow
def test_another_optimizer_starts_without_averages_and_says_so(tmp_path, backbone, checkpoint):
    sgd = partial(torch.optim.SGD, momentum=0.9)
    with pytest.warns(UserWarning, match="optimizer is AdamW, and this run has SGD"):
        run = fit(tmp_path, backbone, ckpt_path=checkpoint, optimizer=sgd)
    assert run.global_step == STEPS
    states = run.optimizers[0].state.values()
    assert {key for state in states for key in state} == {"momentum_buffer"}


@pytest.mark.slow
def test_the_given_patience_holds(tmp_path, backbone, checkpoint):
    stopping = EarlyStopping("val/loss", patience=7)
    fit(tmp_path, backbone, callbacks=[stopping], ckpt_path=checkpoint)
    assert stopping.patience == 7


@pytest.mark.slow
def test_what_differs_is_printed_once(tmp_path, backbone, checkpoint, caplog):
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(tmp_path / "same", backbone, ckpt_path=checkpoint)
        assert "other options" not in caplog.text
        fit(tmp_path / "other", backbone, ckpt_path=checkpoint, lr=0.5, base_dropout=False)
    assert caplog.text.count("other options") == 1
    assert "lr is 0.5 (checkpoint: 0.01), base_dropout is False (checkpoint: True)" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": LABELS[::-1], "data": Reversed}, "'low', .* module has .'high', 'middle'"),
        ({"task": Regression(), "labels": None, "data": Values}, "Classification, .* Regression"),
        ({"plan": HeadOnly()}, "LoRA.*HeadOnly"),
    ],
    ids=["order of the labels", "task", "plan"],
)
def test_what_the_trained_weights_depend_on_is_refused(
    tmp_path, backbone, checkpoint, given, message
):
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, backbone, ckpt_path=checkpoint, **given)


@pytest.mark.parametrize("given", [{"lr": -1.0}, {"lrs": {"lora": float("nan")}}])
def test_an_impossible_rate_is_refused(tmp_path, backbone, given):
    with pytest.raises(ValueError, match="expected a finite number from 0 on"):
        fit(tmp_path, backbone, **given)
