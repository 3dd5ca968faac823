"""``--ckpt_path``: what is given holds or is refused; last, best and hpc are found; bad files."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from small import bert

from lightning_pelt import LoRA, Plan, attach, save_adapters
from lightning_pelt.cli import plan as plan_command
from lightning_pelt.cli.base import PELTCLI, main
from lightning_pelt.cli.main import script
from lightning_pelt.testing import tiny_bert

ROWS = [("one two", "low"), ("red", "high"), ("one", "low"), ("green red", "high")]
FILES = ["--data.train=rows.csv", "--data.dev=rows.csv", "--data.test=rows.csv"]
PLAN = {
    "class_path": "Plan",
    "init_args": {"groups": [{"methods": [{"class_path": "LoRA", "init_args": {"r": 8}}]}]},
}
TRAINED = {"lr": 2e-3, "plan": PLAN, "base_dropout": False}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, _isolated: None, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone, rows, and the checkpoint of one epoch."""
    folder = tmp_path_factory.mktemp("made")
    before = Path.cwd()
    os.chdir(folder)
    try:
        bert(Path("bert"), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        with Path("rows.csv").open("w") as file:
            csv.writer(file).writerows([("text", "label"), *ROWS])
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe(TRAINED)))
        fit("fit", "--config=recipe.yaml")
        shutil.move(next(Path("checkpoints").iterdir()), "one.ckpt")
        shutil.rmtree("checkpoints")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def _files(made: Path, _isolated: None, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)


def recipe(model: dict[str, Any]) -> dict[str, Any]:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    files = dict.fromkeys(("train", "dev", "test"), "rows.csv")
    data = {"class_path": "TextClassification", "init_args": {**files, "batch_size": 2}}
    data["init_args"]["max_length"] = 16
    return {
        "trainer": {"accelerator": "cpu", "max_epochs": 1, **quiet},
        "model": {"backbone": "bert", **model},
        "data": data,
    }


def fit(*arguments: str) -> PELTCLI:
    return main(list(arguments))


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> str:
    """The line of a command that ends with status 2."""
    monkeypatch.setattr("sys.argv", ["lightning-pelt", *args])
    with pytest.raises(SystemExit) as ended:
        script()
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"lightning-pelt {args[0]}: ")
    return line.partition(": ")[2]


RESUME = ["--ckpt_path=one.ckpt", "--trainer.max_epochs=2"]


def trained(cli: PELTCLI) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in cli.model.state_dict().items()}


def moved(cli: PELTCLI) -> float:
    """The largest change of a weight since the checkpoint."""
    then = torch.load("one.ckpt", weights_only=True)["state_dict"]
    now = trained(cli)
    assert then.keys() == now.keys()
    return max((now[name] - then[name]).abs().max().item() for name in then)


# -- what is given holds ----------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_not_given_is_that_of_the_checkpoint():
    Path("bare.yaml").write_text(yaml.safe_dump(recipe({})))
    cli = fit("fit", "--config=bare.yaml", *RESUME)
    assert cli.model.lr == 2e-3
    assert cli.model.plan == Plan.uniform(LoRA(r=8))
    assert cli.model.base_dropout is False
    assert cli.model.labels == ["high", "low"]
    assert moved(cli) > 1e-4


@pytest.mark.parametrize("where", ["command line", "recipe"])
@pytest.mark.slow
def test_a_given_rate_is_the_rate_of_the_resumed_fit(where):
    Path("slow.yaml").write_text(yaml.safe_dump(recipe({**TRAINED, "lr": 1e-7})))
    given = {
        "command line": ["--config=recipe.yaml", "--model.lr=1e-7"],
        "recipe": ["--config=slow.yaml"],
    }
    cli = fit("fit", *given[where], *RESUME)
    assert cli.trainer.global_step == 4
    # Two steps of AdamW move a weight by the rate at most, up to its averages of steps before.
    assert 0 < moved(cli) < 1e-5


@pytest.mark.slow
def test_a_given_default_holds_too():
    given = ["--model.lr=1e-3", "--model.base_dropout=true"]
    model = fit("fit", "--config=recipe.yaml", *RESUME, *given).model
    assert (model.lr, model.base_dropout) == (1e-3, True)


@pytest.mark.slow
def test_arguments_of_the_task_hold_beside_those_of_the_checkpoint():
    smooth = ["--model.task=Classification", "--model.task.label_smoothing=0.2"]
    first = fit("fit", "--config=recipe.yaml", *smooth)
    shutil.move(first.trainer.checkpoint_callback.best_model_path, "smooth.ckpt")
    again = ["--config=recipe.yaml", "--ckpt_path=smooth.ckpt", "--trainer.max_epochs=2"]
    task = ["--model.task=Classification", "--model.task.metrics=[macro_f1]"]
    cli = fit("fit", *again, *task)
    assert (cli.model.task.label_smoothing, cli.model.task.metrics) == (0.2, ("macro_f1",))


@pytest.mark.slow
def test_the_configuration_of_a_run_resumes_it():
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
    fit("fit", "--config=recipe.yaml", *logger)
    (config,) = Path("logs").rglob("config.yaml")
    (saved,) = Path("logs").rglob("*.ckpt")
    cli = fit("fit", f"--config={config}", f"--ckpt_path={saved}", "--trainer.max_epochs=2")
    assert cli.trainer.global_step == 4


@pytest.mark.parametrize(
    "command",
    ["fit", *(pytest.param(c, marks=pytest.mark.slow) for c in ("validate", "test", "predict"))],
)
@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["--model.plan=HeadOnly"], ["HeadOnly", "Plan"]),
        (["--model.backbone=other"], ["other", "bert"]),
        (["--model.task=TextToText"], ["TextToText", "Classification"]),
        (["--config=other.yaml"], ["methods.0.r: 8 -> 16"]),
        (["--data.labels=[low, high]"], ["['high', 'low']", "['low', 'high']"]),
    ],
    ids=["plan", "backbone", "task", "size", "labels"],
)
@pytest.mark.sample(3)
def test_what_cannot_hold_is_refused_with_both_values(capsys, monkeypatch, command, given, parts):
    shutil.copytree("bert", "other")
    larger = {**TRAINED, "plan": yaml.safe_load(yaml.safe_dump(PLAN).replace("r: 8", "r: 16"))}
    Path("other.yaml").write_text(yaml.safe_dump(recipe(larger)))
    options = ["--config=recipe.yaml", "--ckpt_path=one.ckpt", *given]
    line = run(capsys, monkeypatch, command, *options)
    assert all(part in line for part in parts), line


@pytest.mark.slow
def test_a_backbone_that_was_moved_is_used():
    shutil.move("bert", "moved")
    cli = fit("test", "--config=recipe.yaml", "--ckpt_path=one.ckpt", "--model.backbone=moved")
    assert cli.model.backbone == "moved"


@pytest.mark.slow
def test_the_plan_of_a_checkpoint_is_shown(capsys):
    state = torch.load("one.ckpt", weights_only=True)
    del state["optimizer_states"]
    torch.save(state, "weights.ckpt")
    Path("bare.yaml").write_text(yaml.safe_dump(recipe({})))
    plan_command.main(["--config=bare.yaml", "--ckpt_path=weights.ckpt"])
    assert "r=8" in capsys.readouterr().out


# -- without a checkpoint ---------------------------------------------------------------------


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.slow
def test_a_model_that_nothing_has_trained_is_refused(capsys, monkeypatch, command):
    line = run(capsys, monkeypatch, command, "--config=recipe.yaml")
    assert line == (
        f"{command} needs a trained model: give --ckpt_path FILE, last or best, or "
        "--untrained true to use the backbone with new weights"
    )
    assert not Path("predictions.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_model_that_nothing_has_trained_is_used_on_demand(command):
    cli = fit(command, "--config=recipe.yaml", "--untrained=true")
    assert cli.model.model is not None
    assert Path("predictions.jsonl").exists() == (command == "predict")


@pytest.mark.slow
def test_untrained_excludes_a_checkpoint(capsys, monkeypatch):
    options = ["--config=recipe.yaml", "--ckpt_path=one.ckpt", "--untrained=true"]
    assert "excludes --ckpt_path one.ckpt" in run(capsys, monkeypatch, "test", *options)


# -- last, best and hpc -----------------------------------------------------------------------

CSV = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=my [logs]"]
KEPT = ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.dirpath=kept [1]"]
WHERE = {
    "logger": [*CSV, "--trainer.logger.name=null"],
    "named logger": [*CSV, "--trainer.logger.name=mine"],
    "default logger": ["--trainer.logger=true"],
    "no logger": ["--trainer.logger=false"],
    "root": ["--trainer.default_root_dir=my [root]"],
    "folder": KEPT,
}


def older(seconds: int) -> None:
    """Let all checkpoints be older than they are."""
    for path in Path().rglob("*.ckpt"):
        stat = path.stat()
        os.utime(path, (stat.st_atime - seconds, stat.st_mtime - seconds))


@pytest.mark.sample(3)
@pytest.mark.parametrize("options", WHERE.values(), ids=WHERE)
def test_last_is_the_newest_run(options):
    fit("fit", "--config=recipe.yaml", *options, "--model.lr=0.5")
    older(100)
    newest = fit("fit", "--config=recipe.yaml", *options, "--model.seed=7")
    expected = trained(newest)
    tested = fit("test", "--config=recipe.yaml", *options, "--ckpt_path=last")
    assert all(torch.equal(expected[name], value) for name, value in trained(tested).items())
    more = ["--ckpt_path=last", "--trainer.max_epochs=2"]
    assert fit("fit", "--config=recipe.yaml", *options, *more).trainer.global_step == 4


@pytest.mark.sample(3)
@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize("keyword", ["last", "best"])
@pytest.mark.parametrize(
    ("options", "folder"),
    [
        (WHERE["named logger"], "my [logs]/mine/*/checkpoints"),
        (WHERE["no logger"], "checkpoints"),
        (WHERE["folder"], "kept [1]"),
    ],
)
def test_where_nothing_is_found_is_said(
    capsys, monkeypatch, tmp_path, command, keyword, options, folder
):
    options = ["--config=recipe.yaml", *options, f"--ckpt_path={keyword}"]
    line = run(capsys, monkeypatch, command, *options)
    assert line.startswith(f"--ckpt_path {keyword}: there is no checkpoint in ")
    assert f"{folder}. Name its file" in line


@pytest.mark.slow
def test_best_is_the_best_of_the_newest_run():
    saver = [*KEPT, "--trainer.callbacks.save_top_k=2", "--trainer.callbacks.monitor=val/loss"]
    longer = ["--trainer.max_epochs=3", "--model.lr=0.5", "--model.warmup=0"]
    done = fit("fit", "--config=recipe.yaml", *saver, *longer)
    best = done.trainer.checkpoint_callback.best_model_path
    assert len(list(Path("kept [1]").iterdir())) == 2
    tested = fit("test", "--config=recipe.yaml", *KEPT, "--ckpt_path=best")
    assert Path(tested.trainer.ckpt_path or tested.config.test.ckpt_path) == Path(best)


@pytest.mark.slow
def test_several_weights_have_no_best(capsys, monkeypatch):
    Path("kept [1]").mkdir()
    state = torch.load("one.ckpt", weights_only=True)
    kept = ("state_dict", "hyper_parameters", "pytorch-lightning_version", "loops", "global_step")
    torch.save({name: state[name] for name in kept}, "kept [1]/a.ckpt")
    options = ["--config=recipe.yaml", *KEPT, "--ckpt_path=best"]
    assert fit("test", *options).trainer.callback_metrics["test/loss"] > 0  # one: no choice
    shutil.copy("kept [1]/a.ckpt", "kept [1]/b.ckpt")
    assert "no record of the best: name one of " in run(capsys, monkeypatch, "test", *options)


@pytest.mark.slow
def test_a_fit_needs_more_than_weights(capsys, monkeypatch):
    saver = [*KEPT, "--trainer.callbacks.save_weights_only=true"]
    cli = fit("fit", "--config=recipe.yaml", *saver)
    path = cli.trainer.checkpoint_callback.best_model_path
    for given in (path, "last"):
        options = ["--config=recipe.yaml", *saver, f"--ckpt_path={given}"]
        line = run(capsys, monkeypatch, "fit", *options)
        assert f"{path} holds weights only" in line
        assert fit("test", *options).trainer.callback_metrics["test/loss"] > 0


@pytest.mark.slow
def test_hpc_is_the_highest_number(capsys, monkeypatch):
    options = ["--config=recipe.yaml", "--ckpt_path=hpc"]
    assert "hpc: there is no checkpoint in " in run(capsys, monkeypatch, "test", *options)
    shutil.copy("one.ckpt", "hpc_ckpt_10.ckpt")
    Path("hpc_ckpt_9.ckpt").write_text("older")
    assert fit("test", *options).config.test.ckpt_path.endswith("hpc_ckpt_10.ckpt")


@pytest.mark.slow
def test_a_folder_of_shards_is_a_checkpoint(capsys):
    state = torch.load("one.ckpt", weights_only=True)
    del state["state_dict"], state["optimizer_states"]
    Path("shards.ckpt").mkdir()
    torch.save(state, "shards.ckpt/meta.pt")
    Path("bare.yaml").write_text(yaml.safe_dump(recipe({})))
    plan_command.main(["--config=bare.yaml", "--ckpt_path=shards.ckpt"])
    assert "r=8" in capsys.readouterr().out

    # Killed between the two renames of a replacement.
    shutil.copytree("shards.ckpt", ".shards.ckpt.part")
    Path("shards.ckpt").rename(".shards.ckpt.old")
    with pytest.warns(UserWarning, match=r"shards\.ckpt: the new checkpoint is there now"):
        plan_command.main(["--config=bare.yaml", "--ckpt_path=shards.ckpt"])
    assert "r=8" in capsys.readouterr().out
    assert not Path(".shards.ckpt.old").exists()


# -- files that are no checkpoints ------------------------------------------------------------


class Own:
    """A class of another program."""


def write_bad(name: str) -> str:
    path, whole = Path("bad.ckpt"), Path("one.ckpt").read_bytes()
    if name == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "text":
        path.write_text("text,label\n")
    elif name == "pickled":
        torch.save({"state_dict": {}, "model": Own()}, path)
    elif name == "tensors":
        torch.save({"weight": torch.zeros(2)}, path)
    elif name == "a tensor":
        torch.save(torch.zeros(2), path)
    elif name == "other program":
        torch.save({"state_dict": {}, "hyper_parameters": {"lr": 1.0}}, path)
    elif name == "safetensors":
        return "bert/model.safetensors"
    elif name == "later version":
        state = torch.load("one.ckpt", weights_only=True)
        state["hyper_parameters"]["magic"] = 1
        torch.save(state, path)
    elif name == "callback":
        torch.save({"state_dict": {}, "hyper_parameters": {}, "lightning_pelt": []}, path)
    elif name == "adapters":
        model = tiny_bert()
        attach(model, Plan.uniform(LoRA(r=2)))
        save_adapters(model, "adapters")
        return "adapters"
    elif name == "folder":
        Path("bert/one.ckpt").write_bytes(whole)
        return "bert"
    else:
        return "on.ckpt"
    return str(path)


DAMAGED = "is not a checkpoint of `lightning-pelt fit`, or it is damaged or truncated"
OTHER = "was not written by `lightning-pelt fit`: its hyperparameters have no backbone and no plan"
BAD = {
    "truncated": f"bad.ckpt {DAMAGED}",
    "empty": f"bad.ckpt {DAMAGED}",
    "text": f"bad.ckpt {DAMAGED}",
    "pickled": f"bad.ckpt {DAMAGED}",
    "safetensors": f"bert/model.safetensors {DAMAGED}",
    "tensors": f"bad.ckpt {OTHER}",
    "a tensor": f"bad.ckpt {OTHER}",
    "other program": f"bad.ckpt {OTHER}",
    "callback": f"bad.ckpt {OTHER}: it is of a module with a PELTCallback",
    "later version": "bad.ckpt has the hyperparameters magic, which this version does not know",
    "adapters": "adapters is a folder of adapters, not a checkpoint",
    "folder": "bert is a folder, and --ckpt_path takes a .ckpt file. Did you mean bert/one.ckpt?",
    "missing": "there is no checkpoint on.ckpt: --ckpt_path takes a file, or one of last, best, hpc"
    ". Did you mean one.ckpt?",
}


@pytest.mark.parametrize(
    "command", ["predict", *(pytest.param(c, marks=pytest.mark.nightly) for c in ("fit", "plan"))]
)
@pytest.mark.parametrize(("name", "message"), BAD.items(), ids=BAD)
@pytest.mark.slow
def test_a_file_that_is_no_checkpoint_is_refused(capsys, monkeypatch, command, name, message):
    options = ["--config=recipe.yaml", f"--ckpt_path={write_bad(name)}"]
    assert run(capsys, monkeypatch, command, *options).startswith(message)
