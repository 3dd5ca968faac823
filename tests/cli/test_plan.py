"""``lightning-pelt plan``: the command; ``tests/reports`` has the table and the figure."""

from __future__ import annotations

from pathlib import Path

import pytest
from reports.plan_models import FIRST, line
from small import bert, t5

from lightning_pelt.cli import plan as plan_cli
from lightning_pelt.cli.main import script

CLASSES = ["--data=TextClassification", "--data.train=absent.csv", "--model.task=Classification"]


def show(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    capsys.readouterr()
    plan_cli.main(list(args))
    return capsys.readouterr().out


@pytest.mark.slow
def test_a_recipe_is_shown_without_its_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file with all kinds of options of ``fit``, from the console script on."""
    Path("recipe.yaml").write_text(f"""
test_after_fit: true
trainer:
  devices: 64
  default_root_dir: runs/here
  logger: {{class_path: WandbLogger, init_args: {{save_dir: runs/here}}}}
  callbacks: [{{class_path: ParameterCount}}]
model:
  backbone: {bert(tmp_path / "bert")}
  plan: {{class_path: Design, init_args: {{strategies: [AL, PB], budget: 1200, pattern: uniform}}}}
  lrs: {{head: 0.1}}
data:
  class_path: TextClassification
  init_args: {{train: absent.csv, labels: [a, b, c]}}
""")
    monkeypatch.setattr("sys.argv", ["lightning-pelt", "plan", "--config=recipe.yaml"])
    with pytest.raises(SystemExit) as ended:
        script()
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert line(text, "encoder  0") == FIRST
    assert line(text, "head") == ["51,", "for", "3", "labels", "(data.labels)"]
    assert line(text, "picture:") == ["runs/here/plan.png"]
    assert Path("runs/here/plan.png").read_bytes()[1:4] == b"PNG"
    assert [path.name for path in Path("runs").rglob("*") if path.is_file()] == ["plan.png"]


@pytest.mark.parametrize(
    ("options", "head"),
    [
        (CLASSES, "not counted: the number of labels is in the data, which is not read"),
        (["--data=GLUE", "--data.task=mnli"], "51, for 3 labels (GLUE's mnli)"),
        (["--data=GLUE", "--data.task=stsb", "--model.task=Regression"], "17"),
    ],
    ids=["unknown", "known", "regression"],
)
@pytest.mark.slow
def test_how_the_head_was_counted_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], head: str
) -> None:
    text = show(capsys, f"--model.backbone={bert(tmp_path / 'bert')}", *options)
    assert f"head      {head}\n" in text
    assert line(text, "picture:") == ["plan.png"] and Path("plan.png").is_file()


@pytest.mark.slow
def test_t5_has_no_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data=TextToText", "--data.train=absent.csv", "--model.task=TextToText"]
    backbone = f"--model.backbone={t5(tmp_path / 't5')}"
    text = show(capsys, backbone, *options, "--model.plan=HeadOnly")
    assert line(text, "head") == ["none"]
    assert "picture" not in text and not Path("plan.png").exists()
    text = show(capsys, backbone, *options, "--model.plan=UniPELT", "--picture=at/last.png")
    # Encoder: an adapter of m=1 behind the feed-forward, r=8 of q and v; twice that r in a decoder.
    assert line(text, "encoder  1")[:4] == ["m=1", "49", "l=10", "r=8"]
    assert line(text, "decoder  1")[:4] == ["m=1", "49", "l=10", "r=8"]
    assert (line(text, "encoder  1")[4], line(text, "decoder  1")[4]) == ("512", "1,024")
    assert line(text, "picture:") == ["at/last.png"] and Path("at/last.png").is_file()


DESIGN = ["--model.plan=Design", "--model.plan.strategies=[APL,APL]"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.plan=S4"], "2 blocks cannot be shared among 4 groups"),
        ([*DESIGN, "--model.plan.budget=20"], "nearest reachable total is"),
        (["--model.backbone=./nowhere"], "there is no such folder"),
        (["--data=GLUE", "--data.task=sst2", "--model.plan=UniPELT", "--model.task=Classification",
          "--model.task.metrics=[acuracy]"], "did you mean 'accuracy'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        show(capsys, f"--model.backbone={bert(tmp_path / 'bert')}", *CLASSES, *options)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out and not Path("plan.png").exists()
    last = printed.err.strip().splitlines()[-1]
    assert last.startswith("lightning-pelt plan: ") and said in last


def test_a_misspelt_option_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        plan_cli.main(["--model.backbone=x", *CLASSES, "--model.plan=S4", "--model.plan.budgit=3"])
    assert ended.value.code == 2
    assert "did you mean 'budget'?" in capsys.readouterr().err
