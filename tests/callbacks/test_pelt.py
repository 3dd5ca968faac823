"""PELTCallback on modules that do not use this package."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import loader, trainer
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from zoo import WIDTH, build

from lightning_pelt import HeadOnly, LoRA, PELTCallback, Plan, UniPELT, attach
from lightning_pelt.attach import Attachment, find_attachment


class UserModule(LightningModule):
    """A module with its own model and head, and an optimizer over all trainable parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.build()

    def build(self) -> None:
        self.net: Any = build("bert", task=False)
        self.head = nn.Linear(WIDTH, 3)
        self.register_buffer("seen", torch.zeros(()))

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        states = self.net(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        return self.head(nn.functional.dropout(states[:, 0], 0.2, self.training))

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        self.seen += 1
        return nn.functional.cross_entropy(self.logits(batch), batch["labels"])

    def test_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self.logits(batch), batch["labels"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)


class Lazy(UserModule):
    """Its model is created in configure_model."""

    def build(self) -> None:
        self.net: Any = None
        self.head = nn.Linear(WIDTH, 3)
        self.register_buffer("seen", torch.zeros(()))

    def configure_model(self) -> None:
        if self.net is None:
            self.net = build("bert", task=False)


class Deep(UserModule):
    """Its model is inside nested containers."""

    def build(self) -> None:
        super().build()
        self.parts = nn.ModuleDict({"towers": nn.ModuleList([self.net])})
        del self.net

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        tower: Any = self.parts["towers"][0]  # type: ignore[index]
        states = tower(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        return self.head(nn.functional.dropout(states[:, 0], 0.2, self.training))


class Compiled(UserModule):
    """Its model is compiled before anything is attached to it."""

    def build(self) -> None:
        super().build()
        self.net = torch.compile(self.net, backend="eager")


class Two(UserModule):
    """It holds two models."""

    def build(self) -> None:
        super().build()
        self.other = build("bert", seed=1, task=False)


MODULES = [UserModule, Lazy, Deep, pytest.param(Compiled, marks=pytest.mark.slow)]


def user_module(kind: type[UserModule] = UserModule) -> UserModule:
    torch.manual_seed(3)
    return kind()


def found(module: LightningModule) -> Attachment:
    attachment = find_attachment(module)
    assert attachment is not None
    return attachment


def loss(
    module: UserModule, folder: Path, checkpoint: Path | None = None, plan: Any = None
) -> float:
    run = trainer(folder, PELTCallback(plan or UniPELT()))
    (result,) = run.test(module, loader(2), ckpt_path=checkpoint, verbose=False, weights_only=True)
    return result["loss"]


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.slow
def test_it_attaches_trains_saves_and_restores(tmp_path, kind):
    module = user_module(kind)
    run = trainer(tmp_path, PELTCallback(UniPELT()))
    run.fit(module, loader(3))
    attachment = found(module)
    base = build("bert", task=False)  # the same weights as those of the module
    now = dict(attachment.model.named_parameters())
    for name, parameter in base.named_parameters():
        assert torch.equal(now[name], parameter), name
    trained = [p for group in attachment.parameter_groups().values() for p in group]
    assert trained
    assert all(p.requires_grad for p in trained)
    assert all(run.optimizers[0].state[p]["step"] == 3 for p in trained)

    run.save_checkpoint(tmp_path / "all.ckpt")
    saved = torch.load(tmp_path / "all.ckpt", weights_only=True)["state_dict"]
    prefix = next(n for n, m in module.named_modules() if m is attachment.model)
    own = {"head.weight", "head.bias", "seen"}
    assert saved.keys() == {f"{prefix}.{name}" for name in attachment.owned} | own

    again = user_module(kind)
    assert loss(again, tmp_path, tmp_path / "all.ckpt") == loss(module, tmp_path)
    assert again.seen == 3
    assert loss(user_module(kind), tmp_path) != loss(module, tmp_path)


@pytest.mark.slow
def test_a_wrapped_name_in_a_checkpoint_fits_the_plain_module(tmp_path):
    """The names differ by `_orig_mod`, which Lightning does not handle."""
    module = user_module(Compiled)
    run = trainer(tmp_path, PELTCallback(UniPELT()))
    run.fit(module, loader(1))
    state = {name.replace("._orig_mod", ""): t for name, t in module.state_dict().items()}
    plain = user_module()
    attach(plain, UniPELT())
    missing = plain.load_state_dict(state, strict=True)
    assert not missing.missing_keys


def test_the_modules_own_head_is_trained(tmp_path):
    module, before = user_module(), user_module().head.weight.detach().clone()
    trainer(tmp_path, PELTCallback(UniPELT())).fit(module, loader(2))
    assert not torch.equal(module.head.weight, before)


@pytest.mark.slow
def test_resumed_equals_uninterrupted(tmp_path):
    whole = user_module()
    run = trainer(tmp_path, PELTCallback(UniPELT()), max_epochs=2)
    run.fit(whole, loader(3))
    part = trainer(tmp_path, PELTCallback(UniPELT()), max_epochs=1)
    part.fit(user_module(), loader(3))
    part.save_checkpoint(tmp_path / "half.ckpt")
    resumed = user_module()
    rest = trainer(tmp_path, PELTCallback(UniPELT()), max_epochs=2)
    rest.fit(resumed, loader(3), ckpt_path=tmp_path / "half.ckpt")
    assert rest.global_step == 6
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_one_of_several_models_is_named_by_its_path(tmp_path):
    with pytest.raises(ValueError, match=r"2 Hugging Face models \(net, other\).*path="):
        trainer(tmp_path, PELTCallback(UniPELT())).fit(user_module(Two), loader(1))
    with pytest.raises(ValueError, match="no Hugging Face model at 'nett': there is net, other"):
        trainer(tmp_path, PELTCallback(UniPELT(), path="nett")).fit(user_module(Two), loader(1))
    module: Any = user_module(Two)
    trainer(tmp_path, PELTCallback(UniPELT(), path="net")).fit(module, loader(1))
    assert found(module).model is module.net
    assert all(p.requires_grad for p in module.other.parameters())  # not changed


def test_a_module_without_a_model_is_refused(tmp_path):
    module = Lazy()
    module.configure_model = lambda: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"Lazy holds no Hugging Face model .*in __init__, setup"):
        trainer(tmp_path, PELTCallback(UniPELT())).fit(module, loader(1))


@pytest.mark.slow
def test_a_checkpoint_of_another_plan_is_refused(tmp_path):
    run = trainer(tmp_path, PELTCallback(Plan.uniform(LoRA(r=4))))
    run.fit(user_module(), loader(1))
    run.save_checkpoint(tmp_path / "lora.ckpt")
    with pytest.raises(RuntimeError, match=r"does not fit the plan\. It lacks .* UniPELT\("):
        loss(user_module(), tmp_path, tmp_path / "lora.ckpt")
    # The same tensors with another scale: only the plans differ.
    with pytest.raises(ValueError, match=r"made with the plan .*alpha=16.*this run has .*alpha=8"):
        loss(user_module(), tmp_path, tmp_path / "lora.ckpt", Plan.uniform(LoRA(r=4, alpha=8)))
    # Another rank: same names, other shapes.
    with pytest.raises((RuntimeError, ValueError), match=r"size mismatch|plan"):
        loss(user_module(), tmp_path, tmp_path / "lora.ckpt", Plan.uniform(LoRA(r=2)))


def test_checkpoints_hold_the_trained_head_and_not_the_base(tmp_path):
    run = trainer(tmp_path, PELTCallback(HeadOnly(), head=["pooler"]))
    run.fit(user_module(), loader(1))
    run.save_checkpoint(tmp_path / "head.ckpt")
    saved = torch.load(tmp_path / "head.ckpt", weights_only=True)["state_dict"]
    own = {"net.pooler.dense.weight", "net.pooler.dense.bias"}
    assert saved.keys() == own | {"head.weight", "head.bias", "seen"}


def averaging(folder: Path, epochs: int, checkpoint: Path | None = None) -> UserModule:
    ema = EMAWeightAveraging(decay=0.5, update_every_n_steps=1)
    kept = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    options = {"max_epochs": epochs, "enable_checkpointing": True}
    run = trainer(folder, PELTCallback(UniPELT()), ema, kept, **options)
    module = user_module()
    run.fit(module, loader(2), ckpt_path=checkpoint, weights_only=True)
    return module


@pytest.mark.slow
def test_averaged_weights_fit_and_resume(tmp_path):
    whole = averaging(tmp_path / "a", 2)
    averaging(tmp_path / "b", 1)
    resumed = averaging(tmp_path / "b", 2, tmp_path / "b" / "epoch=0.ckpt")
    saved = torch.load(tmp_path / "b" / "epoch=0.ckpt", weights_only=True)
    assert not any("word_embeddings" in name for name in saved["state_dict"])
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_an_attached_module_survives_pickling(tmp_path):
    module = user_module()
    trainer(tmp_path, PELTCallback(UniPELT())).fit(module, loader(1))
    module.trainer = None
    copy = pickle.loads(pickle.dumps(module.eval()))
    batch = next(iter(loader(1)))
    with torch.no_grad():
        assert torch.equal(copy.logits(batch), module.logits(batch))
    assert found(copy).gates.keys() == found(module).gates.keys()
    copied = dict(copy.named_parameters())
    groups = found(copy).parameter_groups().values()
    assert all(any(p is q for q in copied.values()) for group in groups for p in group)


def test_the_callback_itself_survives_pickling():
    callback = pickle.loads(pickle.dumps(PELTCallback(UniPELT(), path="net")))
    assert (callback.plan, callback.path) == (UniPELT(), "net")


def test_two_fits_attach_once(tmp_path):
    module = user_module()
    callback = PELTCallback(UniPELT())
    trainer(tmp_path, callback).fit(module, loader(1))
    names = set(module.state_dict())
    trainer(tmp_path, callback).fit(module, loader(1))
    assert set(module.state_dict()) == names


@pytest.mark.parametrize("base_dropout", [True, False])
def test_train_mode_of_base_and_submodules(tmp_path, base_dropout):
    class Modes(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.base = pl_module.net.encoder.layer[0].output.dropout.training
            self.own = [m.training for ms in found(pl_module).submodules.values() for m in ms]

    modes = Modes()
    callback = PELTCallback(UniPELT(), base_dropout=base_dropout)
    trainer(tmp_path, callback, modes).fit(user_module(), loader(1))
    assert modes.base is base_dropout
    assert all(modes.own)
