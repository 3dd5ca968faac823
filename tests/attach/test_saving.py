"""``save_pretrained`` of an attached model, by hand and by transformers' Trainer."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from lightning_pelt import LoRA, Plan, attach, load_adapters
from lightning_pelt.testing import tiny_bert

PLAN = Plan.uniform(LoRA(r=2))


def tuned(seed: int = 0) -> Any:
    """A model whose submodules have left their initial values."""
    model = tiny_bert()
    attach(model, PLAN, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.rand(parameter.shape, generator=draw) - 0.5
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(5, 12).view(1, -1)).logits


def test_it_writes_adapters_and_says_so(tmp_path: Path) -> None:
    model = tuned()
    with pytest.warns(UserWarning, match=r"writes the adapters .*load_adapters\(model, folder\)"):
        model.save_pretrained(tmp_path / "own")
    fresh = tiny_bert()
    load_adapters(fresh, tmp_path / "own")
    assert torch.equal(logits(fresh), logits(model))
    with pytest.raises((OSError, KeyError)):  # it is no whole model
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "own")


def test_only_the_main_process_writes_and_pushes(tmp_path: Path) -> None:
    model = tuned()
    model.save_pretrained(tmp_path / "other", is_main_process=False, push_to_hub=True)
    assert not (tmp_path / "other").exists()


@pytest.mark.filterwarnings("ignore:save_pretrained of an attached model")
def test_a_state_dict_that_was_gathered_is_what_is_written(tmp_path: Path) -> None:
    model = tuned()
    state = {name: torch.full_like(tensor, 2.0) for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "own", state_dict=state)
    written = load_file(tmp_path / "own" / "adapters.safetensors")
    assert written
    assert all(bool((tensor == 2).all()) for tensor in written.values())


def test_a_detached_or_copied_model_saves_what_it_is(tmp_path: Path) -> None:
    model = tuned()
    other = deepcopy(model)
    for parameter in other.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1)
    with pytest.warns(UserWarning, match="adapters"):
        other.save_pretrained(tmp_path / "copy")
    fresh = tiny_bert()
    load_adapters(fresh, tmp_path / "copy")
    assert torch.equal(logits(fresh), logits(other))
    assert not torch.equal(logits(fresh), logits(model))
    model.pelt_attachment.detach()
    model.save_pretrained(tmp_path / "whole")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(logits(whole), logits(model))


def rows(count: int) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(5, 30, (6,), generator=draw),
            "labels": torch.randint(0, 2, (), generator=draw),
        }
        for _ in range(count)
    ]


def trainer(model: Any, folder: Path, **options: Any) -> Trainer:
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.5,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_strategy": "no",
        **options,
    }
    data = rows(12)
    settings = TrainingArguments(**arguments)
    return Trainer(model=model, args=settings, train_dataset=data, eval_dataset=data[:4])


@pytest.mark.filterwarnings("ignore:save_pretrained of an attached model")
class TestTransformersTrainer:
    @pytest.mark.slow
    def test_it_resumes_where_it_stopped(self, tmp_path: Path) -> None:
        pytest.importorskip("accelerate")
        whole, part, resumed = tuned(), tuned(), tuned(seed=1)
        trainer(whole, tmp_path / "whole", max_steps=3).train()
        trainer(part, tmp_path / "part", max_steps=3).train()
        rest = trainer(resumed, tmp_path / "rest", max_steps=3)
        rest.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
        assert rest.state.global_step == 3
        assert torch.equal(logits(resumed), logits(whole))

    @pytest.mark.slow
    def test_it_loads_the_best_checkpoint(self, tmp_path: Path) -> None:
        pytest.importorskip("accelerate")
        model = tuned()
        best = {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
        }
        run = trainer(model, tmp_path, max_steps=3, **best)
        run.train()
        folder = Path(str(run.state.best_model_checkpoint))
        losses = [line["eval_loss"] for line in run.state.log_history if "eval_loss" in line]
        steps = [line["step"] for line in run.state.log_history if "eval_loss" in line]
        assert folder.name == f"checkpoint-{steps[losses.index(min(losses))]}"
        fresh = tiny_bert()
        load_adapters(fresh, folder)
        assert torch.equal(logits(fresh), logits(model))
        assert json.loads((folder / "adapter_config.json").read_text())["plan"] == PLAN.to_config()
