"""Mistakes in the text of a recipe: one line with the file and the place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from lightning_pelt.cli.base import main
from lightning_pelt.cli.main import script
from lightning_pelt.cli.recipe_file import read_recipe

# Nine lists of nine aliases: 9^9 values, which take minutes to visit.
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{then}'] * 9)}]\n"
    for then, now in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "bomb": (BOMB, "line 5: its aliases repeat more than 10,000 values"),
    "alias to itself": ("a: &a [*a]", "line 1: the alias \\*a is inside what it repeats"),
    "alias to nothing": ("a: 1\nb: *a", "line 2: the alias \\*a has no &a before it"),
    "deep brackets": ("a: " + "[" * 500, "line 1: it nests deeper than 100 levels"),
    "deep dashes": ("- " * 50_000, "line 1: it nests deeper than 100 levels"),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(200)), "line 101: it nests deeper"),
    "key twice": (
        "model:\n  lr: 1\n  lr: 2\n",
        "line 3: the key 'lr' occurs twice, first in line 2",
    ),
    "group twice": ("data: {}\nmodel: {}\ndata: {}\n", "line 3: the key 'data' occurs twice"),
    "not UTF-8": (b"model: {backbone: caf\xe9}", "it is not UTF-8: the byte 0xe9 at position 21"),
    "UTF-16": ("model: {}".encode("utf-16"), "it is not UTF-8: the byte 0xff at position 0"),
    "binary": (bytes(range(32)), "control characters are not allowed"),
    "empty": ("", "it is empty"),
    "comments": ("# nothing\n", "it is empty"),
    "list": ("- model\n", "it is a list"),
    "text": ("model", "it is the value 'model'"),
    "not YAML": ("model: [1\n", "line 2, column 1: "),
    "tab": ("model:\n\tlr: 1\n", "line 2, column 1: "),
    "object": ("a: !!python/object/apply:os.getcwd []", "line 1, column 4: .* constructor"),
    "two documents": ("a: 1\n---\nb: 1\n", "line 2, column 1: "),
    "large": ("#" * 10_000_001, "has 10,000,001 bytes"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_a_bad_text_is_refused_quickly_by_name(text, message):
    path = Path("my recipe.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.process_time()
    with pytest.raises(ValueError, match=f"^my recipe.yaml: .*{message}"):
        read_recipe(path)
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "text",
    [
        "a: &x {b: 1, c: &y [2]}\nd: {<<: *x, b: 3}\ne: *y\nf: *y\n",
        "\ufeffa: [1.0e-3, null, 'x: y']",
        "a: {x: 1}\nb: {x: 1}\nc: [{x: 1}, {x: 2}]",
        "a: |\n  a: 1\n  a: 2\n",
    ],
    ids=["aliases", "byte order mark", "one key in several mappings", "keys in a text"],
)
def test_a_good_text_is_read_as_yaml_does(text):
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    assert read_recipe("recipe.yaml") == yaml.safe_load(text)


def test_a_file_that_a_recipe_names_is_read_too():
    Path("part").mkdir()
    Path("part/plan.yaml").write_text("a: 1\na: 2\n")
    Path("part/recipe.yaml").write_text("model: {plan: plan.yaml, other: recipe.yaml}\n")
    with pytest.raises(ValueError, match=r"^part/plan.yaml: line 2: the key 'a' occurs twice"):
        read_recipe("part/recipe.yaml")
    Path("part/plan.yaml").write_text("a: 1\n")
    assert read_recipe("part/recipe.yaml")["model"]["plan"] == "plan.yaml"


@pytest.mark.parametrize("option", ["--config", "--model.lrs", "--model.plan", "--data"])
def test_a_value_on_the_command_line_is_checked_too(capsys, option):
    flow = "{" + ", ".join(BOMB.splitlines()) + "}"
    with pytest.raises(SystemExit) as ended:
        main(["fit", f"{option}={flow}"])
    assert ended.value.code == 2
    line = f"lightning-pelt fit: {option}: line 1: its aliases repeat more than 10,000 values\n"
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("text", ["rows[1].csv", "*attention", "[*attention*]", "a: b: c", "{x"])
@pytest.mark.slow
def test_other_text_on_the_command_line_is_left_to_the_options(capsys, text):
    with pytest.raises(SystemExit):
        main(["fit", f"--model.lr={text}"])
    assert capsys.readouterr().err.startswith("lightning-pelt fit: model.lr: Expected a ")


COMMANDS = {
    "fit": ["fit"],
    "validate": ["validate"],
    "test": ["test"],
    "predict": ["predict"],
    "plan": ["plan"],
    "search": ["search"],
    "profiles train": ["profiles", "train", "--store=s.db"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "command"), COMMANDS.items(), ids=COMMANDS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "x.yaml: line 5: its aliases repeat more than 10,000 values"),
        (b"a: \xff", "x.yaml: it is not UTF-8: the byte 0xff at position 3"),
        (None, "config: Path is not a file: "),
    ],
    ids=["bomb", "not UTF-8", "folder"],
)
def test_every_command_prints_one_line(monkeypatch, capsys, name, command, text, message):
    if text is None:
        Path("x.yaml").mkdir()
    else:
        Path("x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setattr("sys.argv", ["lightning-pelt", *command, "--config=x.yaml"])
    with pytest.raises(SystemExit) as ended:
        script()
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"lightning-pelt {name}: {message}")
    assert len(printed.err.splitlines()) == 1
    assert not printed.out
