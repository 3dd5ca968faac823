"""PELTModule: four tasks, the optimizer, the options, and checkpoints."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from small import LABELS, WORDS, Sentences, bert, gpt2, t5
from torch import Tensor

from lightning_pelt import (
    FullFineTuning,
    Gate,
    Group,
    HeadOnly,
    LoRA,
    PELTModule,
    Plan,
    UniPELT,
)
from lightning_pelt.tasks import CausalLM, Classification, Regression, TextToText

TASKS: dict[str, tuple[Any, Any, str]] = {
    "classification": (bert, Classification(metrics=("accuracy", "macro_f1")), "label"),
    "regression": (bert, Regression(), "value"),
    "text_to_text": (t5, TextToText(max_new_tokens=2), "text"),
    "causal_lm": (gpt2, CausalLM(max_new_tokens=2), "none"),
}


def module_and_data(folder: Path, kind: str = "classification", **options: Any) -> tuple[Any, Any]:
    save, task, target = TASKS[kind]
    backbone = save(folder / "backbone")
    data = Sentences(backbone, target=target)
    return PELTModule(backbone, task=task, labels=data.labels, **options), data


def logits(module: PELTModule, data: Sentences) -> Tensor:
    batch = next(iter(data.predict_dataloader()))
    batch.pop("labels", None)
    if module.model.config.is_encoder_decoder:  # type: ignore[union-attr]
        batch["decoder_input_ids"] = batch["input_ids"][:, :3]
    module.eval()
    with torch.no_grad():
        return module(**batch).logits


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.slow
def test_fit_validate_test_predict_and_load(tmp_path, kind):
    module, data = module_and_data(tmp_path, kind)
    run = trainer(tmp_path, limit_train_batches=2)
    run.fit(module, data)
    assert run.global_step == 2
    (val,), (test,) = (run.validate(module, data), run.test(module, data))
    monitored = f"{module.task.monitor}"
    assert {"val/loss", f"val/{monitored}"} <= val.keys()
    assert {"test/loss", f"test/{monitored}"} <= test.keys()

    rows = [row for batch in run.predict(module, data) for row in batch]
    assert len(rows) == len(data.rows("test"))
    if kind == "classification":
        for row in rows:
            assert list(row["probabilities"]) == LABELS
            assert sum(row["probabilities"].values()) == pytest.approx(1)
            assert row["label"] == max(LABELS, key=row["probabilities"].__getitem__)
        by_hand = logits(module, data).softmax(-1)[0].tolist()
        assert list(rows[0]["probabilities"].values()) == pytest.approx(by_hand)
    elif kind == "regression":
        by_hand = logits(module, data)[:, 0].tolist()
        assert [row["value"] for row in rows[: len(by_hand)]] == pytest.approx(by_hand)
    else:
        assert all(set(row["text"].split()) <= set(WORDS) for row in rows)

    run.save_checkpoint(tmp_path / "all.ckpt")
    saved = torch.load(tmp_path / "all.ckpt", weights_only=True)  # refuses what is not plain data
    assert saved["hyper_parameters"]["plan"] == UniPELT().to_config()
    again = PELTModule.load_from_checkpoint(tmp_path / "all.ckpt", weights_only=True)
    assert (again.task, again.plan, again.labels) == (module.task, module.plan, module.labels)
    assert torch.equal(logits(again, data), logits(module, data))


@pytest.mark.slow
def test_label_names_are_restored_in_predictions(tmp_path):
    module, data = module_and_data(tmp_path)
    run = trainer(tmp_path)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "all.ckpt")
    again = PELTModule.load_from_checkpoint(tmp_path / "all.ckpt")
    assert again.model.config.id2label == dict(enumerate(LABELS))
    (before,), (after,) = (
        run.predict(module, data)[:1],
        trainer(tmp_path).predict(again, data)[:1],
    )
    assert before == after


@pytest.mark.slow
def test_a_checkpoint_of_another_plan_is_refused(tmp_path):
    module, data = module_and_data(tmp_path, plan=Plan.uniform(LoRA(alpha=8)))
    run = trainer(tmp_path, limit_train_batches=1)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "lora.ckpt")
    other = PELTModule(module.backbone, Plan.uniform(LoRA(alpha=16)), labels=LABELS)
    with pytest.raises(ValueError, match=r"made with the plan .*alpha=8.*this run has .*alpha=16"):
        trainer(tmp_path).test(other, data, ckpt_path=tmp_path / "lora.ckpt")


def test_plan_and_task_may_be_plain_configurations(tmp_path):
    backbone = bert(tmp_path / "backbone")
    plan = {
        "class_path": "lightning_pelt.UniPELT",
        "init_args": {"methods": [{"class_path": "lightning_pelt.LoRA", "init_args": {"r": 2}}]},
    }
    task = {"class_path": "lightning_pelt.tasks.classification.Classification"}
    module = PELTModule(backbone, plan, task, labels=LABELS)  # type: ignore[arg-type]
    assert module.plan == UniPELT(methods=[LoRA(r=2)])
    assert module.task == Classification()
    wrong = {"class_path": "lightning_pelt.tasks.classification.Clasification"}
    with pytest.raises(ValueError, match="Clasification"):
        PELTModule(backbone, plan, wrong, labels=LABELS)  # type: ignore[arg-type]


# -- the optimizer ----------------------------------------------------------------------------


def rates(folder: Path) -> dict[str, list[float]]:
    with (folder / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("lr-AdamW/")]
    return {
        name.removeprefix("lr-AdamW/"): [float(row[name]) for row in rows if row[name]]
        for name in names
    }


@pytest.mark.slow
def test_every_method_has_its_own_rate_that_warms_up_and_decays(tmp_path):
    module, data = module_and_data(tmp_path, lr=1e-2, lrs={"lora": 1e-3, "head": 2e-3}, warmup=2)
    run = trainer(tmp_path, LearningRateMonitor("step"), max_epochs=2)
    run.fit(module, data)  # 2 x 5 steps: up over 2, down over 8
    curve = [0.0, 0.5, *(1 - done / 8 for done in range(8))]
    peaks = {"adapter": 1e-2, "prefix": 1e-2, "lora": 1e-3, "gate": 1e-2, "head": 2e-3}
    logged = rates(tmp_path)
    assert logged.keys() == peaks.keys()
    for name, peak in peaks.items():
        assert logged[name] == pytest.approx([peak * part for part in curve]), name


def test_a_rate_for_an_unknown_method_names_the_nearest(tmp_path):
    module, data = module_and_data(tmp_path, lrs={"lorra": 1e-3})
    with pytest.raises(ValueError, match="did you mean 'lora'"):
        trainer(tmp_path).fit(module, data)


def test_weight_decay_and_optimizer(tmp_path):
    class Optimizers(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            (optimizer,) = trainer.optimizers
            self.kind = type(optimizer)
            self.decay = {g["name"]: g["weight_decay"] for g in optimizer.param_groups}

    seen = Optimizers()
    module, data = module_and_data(tmp_path, weight_decay=0.1, optimizer=torch.optim.RAdam)
    trainer(tmp_path, seen, limit_train_batches=1).fit(module, data)
    assert seen.kind is torch.optim.RAdam
    assert seen.decay == {"adapter": 0.1, "prefix": 0.1, "lora": 0.1, "gate": 0, "head": 0.1}


# -- baselines --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("plan", [HeadOnly(), FullFineTuning()])
def test_baselines(tmp_path, plan):
    module, data = module_and_data(tmp_path, plan=plan)
    module.configure_model()
    before = {name: tensor.clone() for name, tensor in module.model.named_parameters()}
    run = trainer(tmp_path)
    run.fit(module, data)
    moved = {
        n for n, tensor in module.model.named_parameters() if not torch.equal(tensor, before[n])
    }
    head = {name for name in before if name.startswith("classifier")}
    if plan == HeadOnly():
        assert moved == head
    else:
        # A key's bias adds the same to all scores of a query; a token type is in every row.
        assert before.keys() - moved <= {n for n in before if "key.bias" in n or "position" in n}
    run.save_checkpoint(tmp_path / "all.ckpt")
    saved = torch.load(tmp_path / "all.ckpt", weights_only=True)["state_dict"]
    assert ("model.bert.pooler.dense.weight" in saved) == (plan == FullFineTuning())
    again = PELTModule.load_from_checkpoint(tmp_path / "all.ckpt")
    assert torch.equal(logits(again, data), logits(module, data))


# -- options of the base ----------------------------------------------------------------------


class Draws(Callback):
    """Two forwards of one training batch, in the mode of training."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self.base = pl_module.model.bert.embeddings.dropout.training
        self.head = pl_module.model.classifier.training
        with torch.no_grad():
            self.logits = [pl_module(**batch).logits for _ in range(2)]


@pytest.mark.parametrize("base_dropout", [True, False])
@pytest.mark.slow
def test_dropout_of_the_base(tmp_path, base_dropout):
    module, data = module_and_data(tmp_path, base_dropout=base_dropout)
    draws = Draws()
    trainer(tmp_path, draws, limit_train_batches=1).fit(module, data)
    assert draws.base is base_dropout
    assert draws.head
    # The head's own dropout belongs to transformers' model class: it stays with the base.
    assert torch.equal(*draws.logits) is not base_dropout


@pytest.mark.slow
def test_dropout_is_off_for_validation_and_on_again(tmp_path):
    class Modes(Callback):
        seen: list[tuple[str, bool]] = []  # noqa: RUF012

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.seen.append(("train", pl_module.model.bert.embeddings.dropout.training))

        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.seen.append(("val", pl_module.model.bert.embeddings.dropout.training))

    module, data = module_and_data(tmp_path)
    trainer(tmp_path, Modes(), max_epochs=2, num_sanity_val_steps=1).fit(module, data)
    assert set(Modes.seen) == {("train", True), ("val", False)}


def trained(folder: Path, data: Sentences, module: PELTModule, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(4)
    trainer(folder, **options).fit(module, data)
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.slow
def test_recomputed_activations_change_nothing(tmp_path):
    module, data = module_and_data(tmp_path)
    plain = trained(tmp_path, data, module)
    again = PELTModule(module.backbone, labels=LABELS, checkpoint_activations=True)
    recomputed = trained(tmp_path, data, again)
    assert again.model.is_gradient_checkpointing
    torch.testing.assert_close(recomputed, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "precision", "base", "own"),
    [
        ("float32", "bf16-mixed", torch.float32, torch.float32),
        ("bfloat16", "32-true", torch.bfloat16, torch.float32),
        ("float16", "32-true", torch.float16, torch.float32),
        ("bfloat16", "bf16-mixed", torch.bfloat16, torch.float32),
        ("bfloat16", "bf16-true", torch.bfloat16, torch.bfloat16),
        ("float32", "bf16-true", torch.bfloat16, torch.bfloat16),
        ("auto", "32-true", torch.float32, torch.float32),
    ],
)
@pytest.mark.slow
def test_dtypes_and_precisions(tmp_path, dtype, precision, base, own):
    module, data = module_and_data(tmp_path, dtype=dtype)
    run = trainer(tmp_path, precision=precision)
    run.fit(module, data)
    attachment = module.attachment
    groups = attachment.parameter_groups()
    assert {p.dtype for group in groups.values() for p in group} == {own}
    frozen = {p.dtype for p in module.parameters() if not p.requires_grad}
    assert frozen == {base}
    assert all(p.isfinite().all() for group in groups.values() for p in group)
    moved = attachment.submodules["lora"][1]
    assert any(parameter.any() for parameter in moved.parameters())  # B starts at zero
    (result,) = run.validate(module, data)
    assert torch.isfinite(torch.tensor(result["val/loss"]))
    run.save_checkpoint(tmp_path / "all.ckpt")
    PELTModule.load_from_checkpoint(tmp_path / "all.ckpt")


@pytest.mark.slow
def test_groups_of_blocks_and_shared_gates_are_restored(tmp_path):
    plan = Plan(
        [
            Group([LoRA(r=2, gate=Gate(shared=True))], blocks=[0]),
            Group([LoRA(r=3, sites=("ffn.in",))], blocks="1"),
        ]
    )
    module, data = module_and_data(tmp_path, plan=plan)
    run = trainer(tmp_path)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "all.ckpt")
    again = PELTModule.load_from_checkpoint(tmp_path / "all.ckpt")
    assert again.plan == plan
    assert torch.equal(logits(again, data), logits(module, data))


@pytest.mark.slow
def test_the_seed_determines_the_weights_and_keeps_the_global_generator(tmp_path):
    backbone = bert(tmp_path / "backbone")
    states = []
    for seed in (0, 0, 1):
        module = PELTModule(backbone, labels=LABELS, seed=seed)
        before = torch.get_rng_state()
        module.configure_model()
        assert torch.equal(torch.get_rng_state(), before)
        states.append(module.state_dict())
        torch.rand(3)
    name = "model.classifier.weight"
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not torch.equal(states[0][name], states[2][name])
