"""The nearest name of the right kind, and messages without the parser's words."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import bert

from lightning_pelt.cli.base import main
from lightning_pelt.cli.names import nearest, nearest_option

OPTIONS = [
    *("config", "seed_everything", "test_after_fit", "data", "ckpt_path"),
    *(f"model.{n}" for n in ("backbone", "plan", "task", "lr", "lrs", "warmup", "base_dropout")),
    *(f"trainer.{n}" for n in ("accelerator", "max_epochs", "min_epochs", "max_steps", "logger")),
    *("predictions", "predictions.path"),
]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("model.learning_rate", "model.lr"),
        ("model.dropout", "model.base_dropout"),
        ("model.backbon", "model.backbone"),
        ("modle.lr", "model.lr"),
        ("trainer.epochs", "trainer.max_epochs"),
        ("trainer.maxepochs", "trainer.max_epochs"),
        ("trainer.max_step", "trainer.max_steps"),
        ("learning_rate", "model.lr"),
        ("lr", "model.lr"),
        ("max_epochs", "trainer.max_epochs"),
        ("seed", "seed_everything"),
        ("batch_size", "data.init_args.batch_size"),
        ("checkpoint_path", "ckpt_path"),
        ("zzzz", None),
    ],
)
def test_the_nearest_option(name, meant):
    assert nearest_option(name, OPTIONS) == meant


@pytest.mark.parametrize("name", ["model.max_epochs", "model.batch_size", "model.accelerator"])
def test_no_option_of_another_group_is_near(name):
    meant = nearest_option(name, OPTIONS)
    assert meant is None or meant.startswith("model.")


@pytest.mark.parametrize(
    ("name", "names", "meant"),
    [
        ("Lora", ["LoRA", "IA3"], "LoRA"),
        ("rank", ["alpha", "r", "sites"], "r"),
        ("epochs", ["max_epochs", "min_epochs"], "max_epochs"),
        ("TokenClassification", ["CausalLM", "Classification", "Regression"], "Classification"),
        ("xyz", ["alpha", "r"], None),
    ],
)
def test_the_nearest_name(name, names, meant):
    assert nearest(name, names) == meant


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return bert(tmp_path_factory.mktemp("backbone") / "bert")


RECIPES = {
    "group": ("modle: {backbone: bert}", "x.yaml: unknown option 'modle': did you mean 'model'?"),
    "option": (
        "model: {backbone: bert, learning_rate: 1}",
        "x.yaml: unknown option 'model.learning_rate': did you mean 'model.lr'?",
    ),
    "option without its group": (
        "learning_rate: 1",
        "x.yaml: unknown option 'learning_rate': did you mean 'model.lr'?",
    ),
    "option far from all": (
        "model: {backbone: bert, zzzz: 1}",
        "x.yaml: unknown option 'model.zzzz': there are model.backbone, model.plan, model.task,",
    ),
    "task": (
        "model: {task: Classifications}",
        "model.task: 'Classifications' is not a task (AudioClassification, ... did you mean "
        "'Classification'?",
    ),
    "data module as task": (
        "model: {task: TextClassification}",
        "model.task: 'TextClassification' is a data module, not a task (AudioClassification, "
        "... TokenClassification)",
    ),
    "task with its package": (
        "model: {task: lightning_pelt.tasks.Clasification}",
        "model.task: 'lightning_pelt.tasks.Clasification' is not a task (AudioClassification, ... "
        "did you mean 'Classification'?",
    ),
    "task as data": ("data: Classification", "data: 'Classification' is a task, not a data module"),
    "method as plan": ("model: {plan: LoRA}", "model.plan: 'LoRA' is a method, not a plan"),
    "plan as method": (
        "model: {plan: {class_path: Plan, init_args: {groups: [{methods: [UniPELT]}]}}}",
        # It lists all methods if there are few; the suite defines more.
        "model.plan.groups.methods: 'UniPELT' is a plan, not a method",
    ),
    "argument of a method": (
        "model: {plan: {class_path: Plan, init_args: {groups: [{methods: [{class_path: LoRA, "
        "init_args: {rank: 4}}]}]}}}",
        "model.plan.groups.methods: LoRA has no option 'rank': did you mean 'r'?",
    ),
    "callback": (
        "trainer: {callbacks: [{class_path: EarlyStoping}]}",
        "trainer.callbacks: 'EarlyStoping' is not a callback: did you mean 'EarlyStopping'?",
    ),
    "optimizer": (
        "model: {optimizer: AdanW}",
        "model.optimizer: 'AdanW' is not an optimizer: did you mean 'AdamW'?",
    ),
    "options before their class": (
        "model: {task: {init_args: {metrics: [f1]}}}",
        "model.task: name its class before its options (AudioClassification, ",
    ),
    "number": ("model: {lr: high}", "model.lr: Expected a <class 'float'>. Got value: high"),
    "missing plan file": ("model: {plan: my.yaml}", "model.plan: there is no file my.yaml"),
    "missing backbone": ("model: {lr: 1.0}", "model.backbone is required"),
}


@pytest.mark.parametrize(("text", "message"), RECIPES.values(), ids=RECIPES)
def test_a_mistake_in_a_recipe_is_explained_in_a_line(backbone, capsys, text, message):
    Path("x.yaml").write_text(text)
    Path("rows.csv").write_text("text,label\none,low\nred,high\n")
    options = ["--data=TextClassification", "--data.train=rows.csv", "--config=x.yaml"]
    if "backbone is required" not in message:
        options.insert(0, f"--model.backbone={backbone}")
    with pytest.raises(SystemExit) as ended:
        main(["fit", *options])
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    start, _, end = message.partition(" ... ")
    assert printed.startswith(f"lightning-pelt fit: {start}")
    assert printed.rstrip().endswith(end)
    assert len(printed.splitlines()) == 1


def test_a_help_without_its_class_names_one_that_leads_on(capsys):
    """The parser itself says that ``--model.plan`` lacks its argument."""
    for argument in ("--model.plan.groups.help", "--model.plan.methods.help"):
        with pytest.raises(SystemExit):
            main(["fit", argument])
        error = capsys.readouterr().err
        assert f"{argument} needs the name of a class: `--model.plan.help CLASS`" in error
        assert "`lightning-pelt methods NAME`" in error


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["--model.plan.help", "LoRA"], "'LoRA' is a method: `lightning-pelt methods LoRA` lists"),
        (["--print_shtab=bash"], "`lightning-pelt completion SHELL` prints the script"),
    ],
)
def test_other_commands_that_answer_are_named(capsys, arguments, remedy):
    with pytest.raises(SystemExit):
        main(["fit", *arguments])
    assert remedy in capsys.readouterr().err
