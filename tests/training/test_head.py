"""``head`` of PELTModule: which modules of the base are trained and saved beside the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import trainer
from small import LABELS, Sentences, bert, gpt2

from lightning_pelt import CausalLM, LoRA, PELTModule, Plan
from lightning_pelt.cli.base import main

PLAN = Plan.uniform(LoRA(r=2))


def module_of(backbone: str, head: Any, **options: Any) -> PELTModule:
    module = PELTModule(backbone, PLAN, labels=LABELS, head=head, **options)
    module.configure_model()
    return module


def trained(module: PELTModule) -> set[str]:
    """Modules of the base that are trained."""
    assert module.model is not None
    names = [name for name, p in module.model.named_parameters() if p.requires_grad]
    return {name.rpartition(".")[0] for name in names if "pelt" not in name.split(".")}


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (None, {"classifier"}),
        ("classifier", {"classifier"}),
        (["classifier", "bert.pooler"], {"classifier", "bert.pooler.dense"}),
    ],
)
def test_names_what_is_trained_and_saved(tmp_path: Path, head: Any, expected: set[str]) -> None:
    module = module_of(bert(tmp_path / "bert"), head)
    assert trained(module) == expected
    saved = {name.rpartition(".")[0] for name in module.state_dict() if "pelt" not in name}
    assert {f"model.{path}" for path in expected} == saved


def test_none_trains_the_plan_alone_and_names_a_new_head_that_stays_random(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"classifier.*came from no pretrained file.*Name it too"):
        module = module_of(bert(tmp_path / "bert"), "none")
    assert trained(module) == set()
    assert module.attachment is not None
    assert "head" not in module.attachment.parameter_groups()


def test_language_model_trains_its_head_where_asked(tmp_path: Path) -> None:
    backbone = gpt2(tmp_path / "gpt2")
    assert trained(module_of(backbone, None, task=CausalLM())) == set()
    module = module_of(backbone, "lm_head", task=CausalLM())
    assert module.model is not None
    assert module.model.get_output_embeddings().weight.requires_grad


def test_an_unknown_module_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'clasifier'.*classifier"):
        module_of(bert(tmp_path / "bert"), ["clasifier"])


@pytest.mark.slow
def test_is_restored_from_a_checkpoint(tmp_path: Path) -> None:
    backbone = bert(tmp_path / "bert")
    data = Sentences(backbone, target="label")
    module = PELTModule(
        backbone, PLAN, labels=data.labels, head=["classifier", "bert.pooler"], lr=0.1
    )
    run = trainer(tmp_path, limit_train_batches=2)
    run.fit(module, data)
    run.save_checkpoint(tmp_path / "one.ckpt")
    again = PELTModule.load_from_checkpoint(tmp_path / "one.ckpt", weights_only=True)
    assert again.head == ["classifier", "bert.pooler"]
    assert again.model is not None and module.model is not None
    one, other = again.model.state_dict(), module.model.state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name].cpu()) for name, tensor in one.items())
    fresh = PELTModule(backbone, PLAN, labels=data.labels)
    fresh.configure_model()
    assert fresh.model is not None
    with pytest.raises(RuntimeError, match=r"replace the frozen base.*bert\.pooler"):
        fresh.model.load_state_dict(other)


@pytest.mark.parametrize("given", ["classifier", "[classifier,bert.pooler]", "none"])
def test_the_command_line_takes_one_path_a_list_or_none(
    given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(
            [
                "fit",
                "--model.backbone=any",
                f"--model.head={given}",
                "--data=StdlibDocs",
                "--print_config",
            ]
        )
    expected = {
        "classifier": "head: classifier",
        "none": "head: none",
        "[classifier,bert.pooler]": "head:\n  - classifier\n  - bert.pooler",
    }[given]
    assert expected in capsys.readouterr().out
