"""The command line, in this process: runs, overrides, help and messages."""

from __future__ import annotations

import csv
import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from small import bert

import lightning_pelt
from lightning_pelt import LoRA, UniPELT
from lightning_pelt.cli import entry, overview
from lightning_pelt.cli.base import PELTCLI, main
from lightning_pelt.cli.main import CommandLine, script

ROWS = [
    ("one two", "low"),
    ("red", "high"),
    ("one", "low"),
    ("green red", "high"),
    ("two", "low"),
    ("blue", "high"),
]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, _isolated: None, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["lightning-pelt"])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """A tiny backbone, six rows of the user's own, one quiet epoch."""
    with Path("rows.csv").open("w") as file:
        csv.writer(file).writerows([("text", "label"), *ROWS])
    return [
        f"--model.backbone={bert(tmp_path / 'bert')}",
        "--data=TextClassification",
        "--data.batch_size=2",
        "--data.max_length=16",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.logger=false",
    ]


FILES = ["--data.train=rows.csv", "--data.dev=rows.csv", "--data.test=rows.csv"]
KEPT = [
    "--trainer.callbacks=ModelCheckpoint",
    "--trainer.callbacks.dirpath=kept",
    "--trainer.callbacks.filename=fit",
]


def answer(
    capsys: pytest.CaptureFixture[str], *arguments: str, kind: type[PELTCLI] = PELTCLI
) -> str:
    """The output of a command line that ends the process."""
    with pytest.raises(SystemExit):
        main(list(arguments), kind)
    printed = capsys.readouterr()
    return printed.out + printed.err


# -- runs -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_quickstart_fits_and_tests(tmp_path, repository, capsys):
    cli = main(
        [
            "fit",
            f"--config={repository / 'recipes' / 'quickstart.yaml'}",
            f"--model.backbone={bert(tmp_path / 'bert')}",
            "--trainer.max_epochs=1",
            "--trainer.logger=CSVLogger",
            "--trainer.logger.save_dir=runs/quickstart",
            "--trainer.enable_progress_bar=false",
            "--data.max_length=16",
            "--data.limit_train=96",
            "--data.limit_eval=16",
        ]
    )
    assert cli.trainer.global_step == 3
    assert 0 <= cli.trainer.callback_metrics["test/accuracy"] <= 1
    assert cli.model.labels == cli.datamodule.labels
    assert len(cli.model.labels) == cli.model.model.config.num_labels > 10
    folder = Path(cli.trainer.log_dir)
    assert {"config.yaml", "gates.png", "metrics.csv"} <= {p.name for p in folder.iterdir()}
    assert "test/accuracy" in capsys.readouterr().out
    again = yaml.safe_load((folder / "config.yaml").read_text())
    assert again["trainer"]["max_epochs"] == 1
    assert list(folder.rglob("*.ckpt"))


@pytest.mark.slow
def test_a_fit_can_be_validated_tested_predicted_and_resumed(options, capsys):
    fit = main(["fit", *options, *FILES, *KEPT, "--model.plan=UniPELT", "--model.lr=0.01"])
    checkpoint = "--ckpt_path=kept/fit.ckpt"
    metrics = {k: float(v) for k, v in fit.trainer.callback_metrics.items()}

    # Plan and rates come from the checkpoint, without being said again.
    validated = main(["validate", *options, *FILES, checkpoint])
    assert float(validated.trainer.callback_metrics["val/loss"]) == metrics["val/loss"]
    assert (validated.model.plan, validated.model.lr) == (UniPELT(), 0.01)
    tested = main(["test", *options, *FILES, checkpoint])
    assert float(tested.trainer.callback_metrics["test/loss"]) == metrics["val/loss"]

    Path("new.jsonl").write_text('{"text": "one two"}\n{"text": "blue"}\n{"text": "red"}\n')
    predicted = main(["predict", *options, "--data.predict=new.jsonl", checkpoint])
    lines = [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2]
    assert predicted.model.labels == [
        "high",
        "low",
    ]  # of the checkpoint: the new rows have no labels
    for line in lines:
        assert list(line["probabilities"]) == ["high", "low"]
        assert line["label"] == max(line["probabilities"], key=line["probabilities"].get)
    assert "3 predictions written to" in capsys.readouterr().out
    batch = {"input_ids": torch.tensor([[3, 4, 1]]), "attention_mask": torch.ones(1, 3)}
    with torch.no_grad():
        by_hand = fit.model.eval()(**batch).logits.softmax(-1)[0].tolist()
    assert list(lines[0]["probabilities"].values()) == pytest.approx(by_hand, abs=1e-5)

    where = "--predictions.path=elsewhere/answers.jsonl"
    main(["predict", *options, "--data.predict=new.jsonl", checkpoint, where])
    assert Path("elsewhere/answers.jsonl").read_text() == Path("predictions.jsonl").read_text()

    longer = [option for option in options if "max_epochs" not in option]
    resumed = main(["fit", *longer, *FILES, checkpoint, "--trainer.max_epochs=2"])
    assert resumed.trainer.global_step == 6


@pytest.mark.slow
def test_data_with_other_labels_than_the_checkpoint_is_refused(options):
    main(["fit", *options, *FILES, *KEPT])
    arguments = ["test", *options, *FILES, "--ckpt_path=kept/fit.ckpt"]
    with pytest.raises(ValueError, match=r"\['high', 'low'\], and the data has \['low', 'high'\]"):
        main([*arguments, "--data.labels=[low, high]"])


# -- overrides --------------------------------------------------------------------------------


def printed_model(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    config = answer(capsys, "fit", *arguments, "--print_config")
    return yaml.safe_load(config.partition("\n\n")[0])["model"]


@pytest.mark.slow
def test_options_of_a_method_on_the_command_line(options, capsys):
    chosen = [
        "--model.plan=UniPELT",
        "--model.plan.methods+=LoRA",
        "--model.plan.methods.r=2",
        "--model.plan.methods+=Adapter",
        "--model.plan.methods.bottleneck=4",
        "--model.plan.gate.pool=all",
    ]
    model = printed_model(capsys, *options, *FILES, *chosen, "--model.lrs.lora=0.5")
    assert model["lrs"] == {"lora": 0.5}
    init = model["plan"]["init_args"]
    assert [m["class_path"].rpartition(".")[2] for m in init["methods"]] == ["LoRA", "Adapter"]
    assert init["methods"][0]["init_args"]["r"] == 2
    assert init["methods"][1]["init_args"]["bottleneck"] == 4
    gate = init["gate"].get("init_args", init["gate"])
    assert gate["pool"] == "all"


@pytest.mark.slow
def test_an_overridden_method_reaches_the_model(options):
    plan = ["--model.plan=UniPELT", "--model.plan.methods+=LoRA", "--model.plan.methods.r=2"]
    cli = main(["fit", *options, *FILES, *plan, "--trainer.limit_train_batches=1"])
    assert cli.model.plan == UniPELT(methods=[LoRA(r=2)])
    assert set(cli.model.attachment.counts) == {"lora"}
    # 2 blocks of A (query and value) and two B, 16 wide; two gates each.
    count = cli.model.attachment.counts["lora"]
    assert (count.trained, count.gates) == (2 * (2 * 2 * 16 + 2 * 16 * 2), 2 * 2 * 17)


@pytest.mark.slow
def test_options_of_a_recipe_are_overridden(repository, capsys):
    recipe = f"--config={repository / 'recipes' / 'quickstart.yaml'}"
    model = printed_model(capsys, recipe, "--model.plan=HeadOnly", "--model.lr=0.5")
    assert model["plan"]["class_path"].endswith("HeadOnly")
    assert (model["lr"], model["warmup"]) == (0.5, 0.06)


# -- answers ----------------------------------------------------------------------------------


def test_version(capsys):
    printed = answer(capsys, "--version")
    assert printed.split() == ["lightning-pelt", lightning_pelt.__version__]


TRAINER = ["fit", "validate", "test", "predict"]
OTHERS = "recipes methods schema completion plan report export dashboard search profiles"
ALL = [*TRAINER, *OTHERS.split()]


def test_help_lists_the_commands_in_a_line_each(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = answer(capsys, "--help", kind=CommandLine)
    assert shown == overview.overview(), "the overview without the parsers"
    listed, _, end = shown.partition("lists the options of a command.\n\n")[2].partition("\n\n")
    commands = listed.splitlines()
    assert "`--debug` with any command prints the traceback" in end
    assert [line.split()[0] for line in commands] == ALL
    assert all(line.endswith(".") for line in commands)


@pytest.mark.slow
@pytest.mark.parametrize("run", [script, entry.script])
def test_without_arguments_it_prints_the_help_and_fails(capsys, run):
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err == overview.overview()


@pytest.mark.parametrize("argument", ["--help", "-h", "--version"])
def test_the_overview_needs_no_torch(argument):
    code = """
import sys
from lightning_pelt.cli.entry import script
try:
    script()
except SystemExit as ended:
    assert ended.code == 0
heavy = {"torch", "transformers", "lightning", "jsonargparse", "numpy"}
assert not heavy & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("usage: lightning-pelt [-c CONFIG]", "lightning-pelt 0."))


def test_the_module_is_the_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["python -m", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("lightning_pelt", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == ["lightning-pelt", lightning_pelt.__version__]


def test_options_of_the_trainer_come_last(capsys):
    fit = answer(capsys, "fit", "--help")
    own, _, trainer = fit.partition("\nLightning Trainer options:\n")
    options = ("config", "model.plan", "model.task", "model.optimizer", "data", "test_after_fit",
               "predictions.path", "ckpt_path")  # fmt: skip
    assert all(f"--{option} " in own for option in options)
    assert "--trainer" not in own.replace("trainer.fit", "")
    lines = [line.strip() for line in trainer.splitlines()]
    assert all(line.startswith("--trainer") for line in lines if line.startswith("--"))


def test_help_is_readable(capsys):
    fit = answer(capsys, "fit", "--help")
    for option in ("--model.backbone", "--model.plan", "--data", "--predictions.path", "--config"):
        assert option in fit
    assert "hub id or folder" in " ".join(fit.split())  # the docstring's own words
    usage = fit.partition("\n\n")[0]
    assert len(usage.splitlines()) <= 2
    assert "--lr" not in usage
    assert usage.startswith("usage: lightning-pelt fit [--config RECIPE]")


MISSPELT = [
    (["--model.lrr=1"], "model.lr"),
    (["--modell.lr=1"], "model.lr"),
    (["--trainer.max_epoks=1"], "trainer.max_epochs"),
    (["--data.batchsize=3"], "batch_size"),
    (["--data.trane=rows.csv"], "train"),
    (["--model.plan=UniPLT"], "UniPELT"),
    (["--model.plan=UniPELT", "--model.plan.methods+=Lora"], "LoRA"),
    (
        ["--model.plan=UniPELT", "--model.plan.methods+=LoRA", "--model.plan.methods.alfa=2"],
        "alpha",
    ),
    (["--model.plan=UniPELT", "--model.plan.gate.pol=all"], "pool"),
    (["--model.task=Clasification"], "Classification"),
    (["--data=TextClasification"], "TextClassification"),
    (["--trainer.callbacks+=GateMonitr"], "GateMonitor"),
    (["--trainer.callbacks+=GateMonitor", "--trainer.callbacks.every=3"], "every_n_steps"),
]


@pytest.mark.parametrize(("wrong", "meant"), MISSPELT, ids=[meant for _, meant in MISSPELT])
def test_a_misspelt_name_is_answered_with_the_nearest(options, capsys, wrong, meant):
    printed = answer(capsys, "fit", *options, *FILES, *wrong)
    assert printed.count("did you mean") == 1
    assert printed.rstrip().endswith(f"did you mean '{meant}'?")
    option, _, value = wrong[-1].removeprefix("--").partition("=")
    assert option.rpartition(".")[2] in printed or value in printed
    assert len(printed.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("recipe", "meant"),
    [
        ("model: {lrr: 1}", "model.lr"),
        ("trainer: {max_epoch: 1}", "trainer.max_epochs"),
        ("model: {plan: {class_path: UniPLT}}", "UniPELT"),
        ("model: {plan: {class_path: UniPELT, init_args: {gates: null}}}", "gate"),
    ],
)
def test_a_misspelt_name_in_a_recipe_too(options, capsys, recipe, meant):
    Path("recipe.yaml").write_text(recipe)
    printed = answer(capsys, "fit", "--config=recipe.yaml", *options, *FILES)
    assert f"did you mean '{meant}'?" in printed


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("validat", "validate"), ("profile", "profiles"), ("serach", "search"), ("plans", "plan")],
)
def test_a_misspelt_command(capsys, wrong, meant):
    printed = answer(capsys, wrong, "--config=recipe.yaml", kind=CommandLine)
    assert printed.rstrip().endswith(f"did you mean '{meant}'?")


def test_nonsense_gets_no_suggestion(options, capsys):
    printed = answer(capsys, "fit", *options, *FILES, "--model.qqqqzzzz=1")
    assert "unknown option 'model.qqqqzzzz': there are model.backbone, model.plan" in printed
    assert "did you mean" not in printed


@pytest.mark.slow
def test_a_subclass_has_the_commands_of_the_trainer_and_its_options(options, capsys):
    class Noted(PELTCLI):
        def add_arguments_to_parser(self, parser):
            super().add_arguments_to_parser(parser)
            parser.add_argument("--note", type=str)

        def before_fit(self):
            print("note:", self.config.fit.note)

    assert list(Noted.subcommands()) == ["fit", "validate", "test", "predict"]
    one = [*options, *FILES, "--note=mine", "--trainer.fast_dev_run=true"]
    assert main(["fit", *one], Noted).trainer.global_step == 1
    assert "note: mine" in capsys.readouterr().out
    built = main([*options, *FILES, "--trainer.max_steps=7"], run=False)
    assert (built.trainer.max_steps, built.trainer.global_step) == (7, 0)
    assert "did you mean 'search'" not in answer(capsys, "serach")


def test_the_console_script_gives_no_exit_status(monkeypatch, repository):
    """``sys.exit(script())`` is what the installed command does: anything but None is a failure."""
    declared = re.search(
        r'^lightning-pelt = "(.+):(.+)"$', (repository / "pyproject.toml").read_text(), re.M
    )
    assert declared is not None
    monkeypatch.setattr("lightning_pelt.cli.base.main", lambda *_: object())
    monkeypatch.setattr(sys, "argv", ["lightning-pelt", "fit"])
    module = importlib.import_module(declared[1])
    assert getattr(module, declared[2])() is None


def test_a_fit_without_test_rows_says_that_it_does_not_test(
    options: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        main(["fit", *options, *FILES[:2], "--test_after_fit=true"])
    assert "not tested: TextClassification has no test rows; give --data.test" in caplog.text
