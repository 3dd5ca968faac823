"""``YourModule.load_from_checkpoint`` with checkpoints of PELTCallback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attach.test_trial import llava, picture_and_words
from callbacks.test_pelt import Lazy, UserModule, user_module
from callbacks.tiny import loader, trainer
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.core import saving
from torch import Tensor, nn
from torch.utils.data import DataLoader
from zoo import WIDTH, build

from lightning_pelt import Adapter, LoRA, PELTCallback, Plan, attach, detach
from lightning_pelt.attach import find_attachment

PLAN = Plan.uniform(LoRA(r=2))


def logits(module: Any) -> Tensor:
    with torch.no_grad():
        return module.eval().logits(next(iter(loader(1))))


def trained(module: Any, folder: Path, *callbacks: Any, weights_only: bool = False) -> Path:
    """The checkpoint of a fit."""
    run = trainer(folder, *(callbacks or [PELTCallback(PLAN)]))
    run.fit(module, loader(2))
    run.save_checkpoint(folder / "run.ckpt", weights_only=weights_only)
    return folder / "run.ckpt"


@pytest.mark.parametrize("kind", [UserModule, Lazy])
@pytest.mark.parametrize("strict", [None, True, False])
def test_the_plan_is_attached_and_the_weights_are_loaded(tmp_path, kind, strict):
    module = user_module(kind)
    path = trained(module, tmp_path)
    again = kind.load_from_checkpoint(path, strict=strict, weights_only=True)
    assert torch.equal(logits(again), logits(module))
    assert list(find_attachment(again).submodules) == ["lora"]  # type: ignore[union-attr]


def test_weights_alone_are_enough(tmp_path):
    module = user_module()
    path = trained(module, tmp_path, weights_only=True)
    assert "callbacks" not in torch.load(path, weights_only=True)
    assert torch.equal(logits(UserModule.load_from_checkpoint(path)), logits(module))


@pytest.mark.slow
def test_a_loaded_module_can_be_trained_and_saved_again(tmp_path):
    loaded = UserModule.load_from_checkpoint(trained(user_module(), tmp_path))
    path = trained(loaded, tmp_path / "again")
    assert torch.equal(logits(UserModule.load_from_checkpoint(path)), logits(loaded))


def test_a_merged_module_is_an_ordinary_one_again(tmp_path):
    module = user_module()
    trained(module, tmp_path)
    detach(module)
    run = trainer(tmp_path)
    run.fit(module, loader(1))
    run.save_checkpoint(tmp_path / "plain.ckpt")
    assert not any("pelt" in key for key in torch.load(tmp_path / "plain.ckpt", weights_only=True))
    again = UserModule.load_from_checkpoint(tmp_path / "plain.ckpt")
    assert find_attachment(again) is None
    assert torch.equal(logits(again), logits(module))


@pytest.mark.slow
def test_two_towers_and_a_head(tmp_path):
    class Towers(UserModule):
        def build(self) -> None:
            super().build()
            self.other = build("bert", seed=1, task=False)

        def logits(self, batch: dict[str, Tensor]) -> Tensor:
            inputs = batch["input_ids"], batch["attention_mask"]
            return self.head(self.net(*inputs)[1] + self.other(*inputs)[1])

    module = user_module(Towers)
    callbacks = [
        PELTCallback(PLAN, path="net", head=["pooler"]),
        PELTCallback(Plan.uniform(Adapter(bottleneck=4)), path="other"),
    ]
    path = trained(module, tmp_path, *callbacks)
    assert torch.equal(logits(Towers.load_from_checkpoint(path)), logits(module))


class Captions(LightningModule):
    """A stranger's module of a model that needs example inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)  # of CLIP's class embedding, which is drawn
        self.model = llava()

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        return self.model(**batch, labels=batch["input_ids"]).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


@pytest.mark.slow
def test_example_inputs_are_in_the_checkpoint(tmp_path):
    batch, module = picture_and_words(), Captions()
    run = trainer(tmp_path, PELTCallback(PLAN, example_inputs=picture_and_words(1)))
    run.fit(module, DataLoader([batch, batch], batch_size=None))
    run.save_checkpoint(tmp_path / "run.ckpt")
    again = Captions.load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    with torch.no_grad():
        expected = module.eval().model(**batch).logits
        assert torch.equal(again.eval().model(**batch).logits, expected)


def test_averaged_weights(tmp_path):
    module = user_module()
    ema = EMAWeightAveraging(decay=0.5, update_every_n_steps=1)
    kept = ModelCheckpoint(tmp_path, filename="last")
    run = trainer(tmp_path, PELTCallback(PLAN), ema, kept, enable_checkpointing=True)
    run.fit(module, loader(2))
    again = UserModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(logits(again), logits(module))


class WithParameters(LightningModule):
    """What the two below share."""

    logits: Any = UserModule.logits
    training_step: Any = UserModule.training_step
    configure_optimizers: Any = UserModule.configure_optimizers

    def build(self, width: int) -> None:
        self.net: Any = build("bert", task=False)
        self.head = nn.Linear(WIDTH, width)
        self.register_buffer("seen", torch.zeros(()))


class Configured(WithParameters):
    """It saves its hyperparameters, and takes any others."""

    def __init__(self, width: int, **others: Any) -> None:
        assert others.keys() <= {"note"}
        super().__init__()
        self.save_hyperparameters()
        self.build(width)
        self.loaded: list[Any] = []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loaded.append(checkpoint["global_step"])


class OneArgument(WithParameters):
    """All its hyperparameters are in one argument."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.save_hyperparameters(options)
        self.options = options
        self.build(options["width"])


@pytest.mark.slow
def test_hyperparameters_and_the_own_hook_work_as_without_a_plan(tmp_path):
    module = Configured(5, note="mine")
    again = Configured.load_from_checkpoint(trained(module, tmp_path))
    assert dict(again.hparams) == {"width": 5, "note": "mine"}
    assert again.loaded == [2]
    assert torch.equal(logits(again), logits(module))
    other = Configured.load_from_checkpoint(tmp_path / "run.ckpt", note="changed")
    assert other.hparams["note"] == "changed"


def test_hyperparameters_in_one_argument(tmp_path):
    module = OneArgument({"width": 5})
    again = OneArgument.load_from_checkpoint(trained(module, tmp_path))
    assert again.options == {"width": 5}
    assert torch.equal(logits(again), logits(module))


@pytest.mark.slow
def test_a_module_of_a_command_line(tmp_path):
    cli = LightningCLI(
        Configured,
        run=False,
        args=["--model.width=4"],
        save_config_callback=None,
        trainer_defaults={"logger": False},
    )
    path = trained(cli.model, tmp_path)
    again = Configured.load_from_checkpoint(path)
    assert torch.equal(logits(again), logits(cli.model))


def test_a_module_that_attaches_by_itself_still_loads(tmp_path):
    class Own(UserModule):
        def configure_model(self) -> None:
            attach(self, PLAN)

    module = user_module(Own)
    path = trained(module, tmp_path)
    assert torch.equal(logits(Own.load_from_checkpoint(path)), logits(module))


@pytest.mark.slow
def test_a_damaged_record_is_named(tmp_path):
    path = trained(user_module(), tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    for record in (None, 3, [{"path": None}], [{"path": None, "plan": 4, "head": None}]):
        torch.save({**checkpoint, "lightning_pelt": record}, path)
        with pytest.raises(ValueError, match=r"plan|damaged"):
            UserModule.load_from_checkpoint(path)


def test_without_the_package_the_error_names_it(tmp_path, monkeypatch):
    """Lightning blocks what an unknown package would build, and says whose function it is."""
    path = trained(user_module(), tmp_path)
    kept = {n for n in saving._ALLOWED_INSTANTIATORS if "pelt" not in n}
    monkeypatch.setattr(saving, "_ALLOWED_INSTANTIATORS", kept)
    with pytest.raises(ValueError, match=r"lightning_pelt\.callbacks\.") as error:
        UserModule.load_from_checkpoint(path)
    assert len(str(error.value)) < 400


@pytest.mark.slow
def test_a_new_process_needs_one_import(tmp_path):
    module = user_module()
    path = trained(module, tmp_path)
    torch.save(logits(module), tmp_path / "logits.pt")
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
import torch
from callbacks.test_load_from_checkpoint import UserModule, logits
import lightning_pelt.callbacks
expected = torch.load({str(tmp_path / "logits.pt")!r})
assert torch.equal(logits(UserModule.load_from_checkpoint({str(path)!r})), expected)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
