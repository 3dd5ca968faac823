from __future__ import annotations

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

from lightning_pelt.tasks import CausalLM, Classification, Regression, Task, TextToText

LABELS = ["no", "yes"]
ALL = [Classification(), Regression(), TextToText(), CausalLM()]


def parse(tmp_path: Path, yaml: str, *extra: str) -> Task:
    def function(task: Task) -> Task:
        return task

    config = tmp_path / "task.yaml"
    config.write_text(yaml)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(function)
    built = parser.instantiate(parser.parse_args([f"--config={config}", *extra]))
    return function(built.task)


@pytest.mark.parametrize("path", ["lightning_pelt.tasks.Classification", "Classification"])
def test_yaml_gives_the_task(tmp_path: Path, path: str) -> None:
    yaml = f"task: {{class_path: {path}, init_args: {{metrics: [accuracy, f1]}}}}"
    assert parse(tmp_path, yaml) == Classification(metrics=("accuracy", "f1"))


def test_options_are_overridden_on_the_command_line(tmp_path: Path) -> None:
    task = parse(tmp_path, "task: TextToText", "--task.num_beams=3", "--task.metrics=[f1]")
    assert task == TextToText(num_beams=3, metrics=("f1",))


def test_a_misspelt_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="beams"):
        parse(tmp_path, "task: {class_path: CausalLM, init_args: {beams: 3}}")


@pytest.mark.parametrize("task", ALL, ids=lambda task: type(task).__name__)
def test_a_task_is_plain_data(task: Task) -> None:
    again = type(task)(**json.loads(json.dumps(asdict(task))))  # type: ignore[call-overload]
    assert again == task
    assert hash(again) == hash(task)
    assert pickle.loads(pickle.dumps(task)) == task


@pytest.mark.parametrize("kind", [Classification, Regression, TextToText])
def test_an_unknown_metric_names_the_nearest(kind: Any) -> None:
    near = {Classification: "accuracy", Regression: "pearson", TextToText: "exact_match"}[kind]
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        kind(metrics=["spearman" if kind is Regression else "f1", near + "s"])
    with pytest.raises(ValueError, match="metrics is empty"):
        kind(metrics=[])


@pytest.mark.parametrize("kind", [CausalLM, TextToText])
@pytest.mark.parametrize("name", ["max_new_tokens", "num_beams"])
def test_generation_options_must_generate(kind: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        kind(**{name: 0})


@pytest.mark.parametrize(
    ("task", "monitor", "mode"),
    [
        (Classification(metrics=("matthews", "accuracy")), "matthews", "max"),
        (Regression(metrics=("mse",)), "mse", "min"),
        (TextToText(), "exact_match", "max"),
        (TextToText(generate_in_validation=False), "perplexity", "min"),
        (CausalLM(), "perplexity", "min"),
    ],
)
def test_the_monitored_metric_is_computed_in_validation(
    task: Task, monitor: str, mode: str
) -> None:
    assert (task.monitor, task.mode) == (monitor, mode)
    metrics = task.build_metrics(LABELS)
    assert monitor in metrics
    better = metrics[monitor].higher_is_better
    assert better is None or better == (mode == "max")


@pytest.mark.parametrize("task", ALL, ids=lambda task: type(task).__name__)
def test_metrics_stay_fp32_where_the_default_is_not(task: Task) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        metrics = task.build_metrics(LABELS)
        for metric in metrics.values():
            assert metric.dtype == torch.float32
            metric.reset()  # resets the states to their defaults
            for state in metric.metric_state.values():
                floating = isinstance(state, torch.Tensor) and state.is_floating_point()
                assert not floating or state.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_perplexity_counts_beyond_256_tokens_under_a_bf16_default() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        metric = CausalLM().build_metrics()["perplexity"]
        for loss in (1.0, 3.0):
            for _ in range(300):
                metric.update(torch.tensor(loss, dtype=torch.float32), torch.tensor(1))
        assert float(metric.compute().log()) == pytest.approx(2.0, abs=1e-4)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_missing_backbone_names_the_packaged_one() -> None:
    with pytest.raises(OSError, match="all-MiniLM-L6-v2"):
        Regression().load("nobody/nothing-of-this-name")


def test_weights_are_never_read_through_pickle(bert: str, tmp_path: Path) -> None:
    for file in Path(bert).iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(Path(bert) / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="never read through pickle") as caught:
        Regression().load(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def copied(bert: str, folder: Path) -> Path:
    for file in Path(bert).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / "model.safetensors"


def test_a_truncated_file_is_refused(bert: str, tmp_path: Path) -> None:
    weights = copied(bert, tmp_path)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match="cannot be loaded with AutoModelForSequenceClassification"):
        Regression().load(str(tmp_path))


@pytest.mark.parametrize("fault", ["missing", "of another shape"])
def test_a_partly_random_body_is_refused(bert: str, tmp_path: Path, fault: str) -> None:
    weights = copied(bert, tmp_path)
    tensors = load_file(weights)
    name = "encoder.layer.1.output.dense.weight"
    whole = tensors.pop(name)
    if fault == "of another shape":
        tensors[name] = whole[:, :8].contiguous()
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(OSError, match=r"1 weights of its body .*layer\.1\.output\.dense"):
        Regression().load(str(tmp_path))


def test_a_missing_pooler_is_accepted(bert: str, tmp_path: Path) -> None:
    weights = copied(bert, tmp_path)
    kept = {k: v for k, v in load_file(weights).items() if "pooler" not in k}
    save_file(kept, weights, metadata={"format": "pt"})
    Regression().load(str(tmp_path))


def test_a_head_of_another_size_is_replaced(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=5
    )
    saved = BertForSequenceClassification(config)
    saved.save_pretrained(tmp_path)
    model = Classification().load(str(tmp_path), labels=["a", "b", "c"])
    assert model.classifier.weight.shape == (3, 8)
    body = model.state_dict()
    for name, tensor in saved.bert.state_dict().items():
        assert torch.equal(body[f"bert.{name}"], tensor)


def test_dtype_is_passed_on(bert: str) -> None:
    assert Regression().load(bert, dtype="bfloat16").dtype == torch.bfloat16
    assert Regression().load(bert).dtype == torch.float32
