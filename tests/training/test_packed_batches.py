"""Training on packed rows, with the package's module and inside a stranger's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from lightning.pytorch import LightningModule, Trainer
from packed import by_example
from small import gpt2
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedModel
from zoo import build

from lightning_pelt import (
    XPEFT,
    Adapter,
    CausalLM,
    Gate,
    GateMonitor,
    LoRA,
    PELTCallback,
    PELTModule,
    Plan,
    Prefix,
    RandomBank,
    UniPELT,
    attach,
)
from lightning_pelt.attach.packing import check_packing
from lightning_pelt.data.packing import CollatePacked, pack
from lightning_pelt.testing import awaken
from lightning_pelt.training.packed_batches import PackedBatches, PackedGuard

PLAN = UniPELT([LoRA(r=2), Adapter(), Prefix(length=2, mlp=4)], gate=Gate(pool="masked"))
ROWS = {"input_ids": [[3, 4, 5, 6], [7, 8, 9], [10, 11, 12, 13, 3], [5, 4], [8, 3]]}


def packed(length: int = 7, **columns: list[Any]) -> Dataset:
    same = tuple(columns)
    return pack(Dataset.from_dict({**ROWS, **columns}), length, same=same).remove_columns("length")


def loader(**columns: list[Any]) -> DataLoader:
    return DataLoader(packed(**columns), batch_size=2, collate_fn=CollatePacked())  # type: ignore[arg-type]


def trainer(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    return Trainer(
        **{"max_epochs": 1, "num_sanity_val_steps": 0, **options},
        callbacks=list(callbacks),
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


class Strange(LightningModule):
    """It calls the model as most examples do, which leaves the choice of a cache to the model."""

    def __init__(self, model: PreTrainedModel, lr: float = 0.0, **options: Any) -> None:
        super().__init__()
        self.net, self.lr, self.options = model, lr, options
        self.losses: list[float] = []

    def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
        loss = self.net(**batch, **self.options).loss
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch: dict[str, Tensor], _index: int) -> None:
        self.losses.append(float(self.net(**batch, **self.options).loss))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr)


def alone(model: PreTrainedModel, batch: dict[str, Tensor]) -> float:
    """The mean loss over the examples of a batch, one by one."""
    known, total, tokens = {tuple(ids) for ids in ROWS["input_ids"]}, 0.0, 0
    for words, ids in by_example(batch, batch["input_ids"]):
        assert words in known
        loss = model(input_ids=ids[None], labels=ids[None], use_cache=False).loss
        total, tokens = total + float(loss) * (len(ids) - 1), tokens + len(ids) - 1
    return total / tokens


def test_packed_rows_are_found_in_a_strangers_module(tmp_path: Path) -> None:
    """With the cache that models make by default, transformers would not look for them."""
    module = Strange(build("llama"))
    callback = PELTCallback(PLAN)
    run = trainer(tmp_path, callback)
    hooks = len(module.net._forward_pre_hooks)
    run.fit(module, loader(), loader())
    assert len(module.net._forward_pre_hooks) <= hooks + 3  # those of the plan, not of the guard
    module.eval()
    with torch.no_grad():
        expected = [alone(module.net, batch) for batch in loader()]
    assert len(expected) == 2
    assert module.losses == pytest.approx([*expected, *expected], abs=1e-5)
    without = Strange(module.net)
    for batch in loader():
        without.training_step(batch, 0)  # as it would be without the callback
    assert without.losses != pytest.approx(expected, abs=1e-3)


@pytest.mark.nightly
def test_a_strangers_compiled_model(tmp_path: Path) -> None:
    class Compiled(Strange):
        def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
            compiled = torch.compile(self.net, backend="aot_eager")
            loss = compiled(**batch).loss
            self.losses.append(float(loss.detach()))
            return loss

    module = Compiled(build("llama"))
    trainer(tmp_path, PELTCallback(PLAN)).fit(module, loader())
    with torch.no_grad():
        expected = [alone(module.net.eval(), batch) for batch in loader()]
    assert module.losses == pytest.approx(expected, abs=1e-5)


def test_a_cache_that_is_asked_for(tmp_path: Path) -> None:
    module = Strange(build("llama"), use_cache=True)
    with pytest.raises(ValueError, match="call it with use_cache=False"):
        trainer(tmp_path, PELTCallback(PLAN)).fit(module, loader())


def test_a_guard_that_has_stopped_leaves_the_model() -> None:
    attachment = attach(build("llama"), PLAN)
    hooks = [len(m._forward_pre_hooks) for m in attachment.model.modules()]
    guard = PackedGuard()
    guard.start(attachment)
    guard.start(attachment)
    guard.stop()
    assert [len(m._forward_pre_hooks) for m in attachment.model.modules()] == hooks


@pytest.mark.parametrize("body", [False, True])
def test_a_strangers_model_that_cannot(tmp_path: Path, body: bool) -> None:
    class Body(Strange):
        def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
            return self.net.base_model(batch["input_ids"], position_ids=batch["position_ids"])[
                0
            ].sum()

    module = (Body if body else Strange)(build("opt"))
    plan = Plan.uniform(LoRA(r=2))
    with pytest.raises(ValueError, match="OPTForCausalLM does not keep the examples"):
        trainer(tmp_path, PELTCallback(plan)).fit(module, loader())


def test_a_mask_hides_the_examples(tmp_path: Path) -> None:
    class Masked(Strange):
        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            mask = torch.ones_like(batch["input_ids"])
            return super().training_step({**batch, "attention_mask": mask}, index)

    with pytest.raises(ValueError, match="leave the attention_mask out"):
        trainer(tmp_path, PELTCallback(PLAN)).fit(Masked(build("llama")), loader())


def test_positions_that_go_on_are_no_packed_rows() -> None:
    """Such as those of padding on the left, or of models that need them."""
    attachment = attach(build("opt"), Plan.uniform(LoRA(r=2)))
    checks, ids = PackedBatches(), torch.ones(2, 4, dtype=torch.long)
    checks.check({"input_ids": ids, "position_ids": torch.arange(4).expand(2, 4)}, attachment)
    left = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    positions = (left.cumsum(1) - 1).clamp(min=0)
    batch = {"input_ids": ids, "position_ids": positions, "attention_mask": left}
    checks.check(batch, attachment)
    with pytest.raises(ValueError, match="OPTForCausalLM"):
        checks.check({"input_ids": ids, "position_ids": positions}, attachment)


def test_the_module_trains_on_packed_rows(tmp_path: Path) -> None:
    backbone = gpt2(tmp_path, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    module = PELTModule(backbone, PLAN, CausalLM(), lr=0.0)
    run = trainer(tmp_path, GateMonitor(every_n_steps=1), limit_train_batches=1)
    run.fit(module, loader(), loader())
    found = float(run.callback_metrics["train/loss"])
    model = AutoModelForCausalLM.from_pretrained(backbone)
    attach(model, PLAN)
    with torch.no_grad():
        assert found == pytest.approx(alone(model, next(iter(loader()))), abs=1e-5)
    assert "gate/00/prefix" in run.callback_metrics


def test_packed_rows_may_be_longer_than_the_positions_reach(tmp_path: Path) -> None:
    backbone = gpt2(tmp_path)
    module = PELTModule(backbone, Plan.uniform(LoRA(r=2)), CausalLM())
    rows = pack(Dataset.from_dict({"input_ids": [[3, 4] * 20] * 4}), 100).remove_columns("length")
    assert max(map(len, rows["input_ids"])) == 80  # GPT-2 has 64
    trainer(tmp_path).fit(module, DataLoader(rows, collate_fn=CollatePacked()))  # type: ignore[arg-type]
    long = pack(Dataset.from_dict({"input_ids": [[3] * 65]}), 100).remove_columns("length")
    with pytest.raises(ValueError, match=r"up to 65 tokens, and the model .* positions for 64"):
        trainer(tmp_path).fit(module, DataLoader(long, collate_fn=CollatePacked()))  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_the_module_refuses_a_model_before_its_first_step(tmp_path: Path, stage: str) -> None:
    folder = tmp_path / "opt"
    build("opt").save_pretrained(folder)
    module = PELTModule(str(folder), Plan.uniform(LoRA(r=2)), CausalLM())
    module.__dict__["tokenizer"] = None
    with pytest.raises(ValueError, match="OPTForCausalLM does not keep the examples"):
        getattr(trainer(tmp_path), stage)(module, loader())


def test_the_rows_of_a_profile_are_packed_together() -> None:
    method = XPEFT(bank=RandomBank(size=8), k=2, bottleneck=4, profiles=2)
    attachment = attach(build("llama"), Plan.uniform(method))
    awaken(attachment)
    check_packing(attachment, rows=2)
    profiles = [0, 1, 0, 1, 1]
    rows = packed(profile=profiles)
    batch = CollatePacked()([*rows])
    expected: dict[tuple[int, ...], Tensor] = {}
    with torch.no_grad():
        for ids, profile in zip(ROWS["input_ids"], profiles, strict=True):
            one = torch.tensor([profile])
            given = {"input_ids": torch.tensor([ids]), "profile": one, "use_cache": False}
            expected[tuple(ids)] = attachment.model(**given).logits[0]
        _, outputs = CausalLM().step(attachment.model, batch)
    for ids, logits in by_example(batch, outputs.logits):
        torch.testing.assert_close(logits, expected.pop(ids), rtol=1e-4, atol=1e-5)
    assert not expected


def test_a_check_leaves_the_gates_as_they_were() -> None:
    attachment = attach(build("llama"), PLAN)
    attachment.model(input_ids=torch.tensor([[3, 4, 5]]))
    before = {name: gate.value for name, gate in attachment.gates.items()}
    check_packing(attachment, rows=2)
    for name, gate in attachment.gates.items():
        assert torch.equal(gate.value, before[name])  # type: ignore[arg-type]


def test_a_plan_of_which_a_part_looks_beyond_its_example() -> None:
    """The whole model is tried, with what is attached to it."""
    attachment = attach(build("llama"), Plan.uniform(LoRA(r=2)))

    def mean_over_the_row(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + args[0].mean(1, keepdim=True).sum(-1, keepdim=True)

    attachment.model.get_submodule("model.layers.0.mlp.up_proj").register_forward_hook(
        mean_over_the_row
    )
    with pytest.raises(ValueError, match="does not keep the examples of a packed row apart"):
        check_packing(attachment)
