"""The layout of the package: imports run one way, and methods answer for themselves."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lightning_pelt
from lightning_pelt.methods.base import Method
from lightning_pelt.methods.submodule import Submodule

PACKAGE = Path(lightning_pelt.__file__).parent
# Each folder, or file of the root, may import from those before it and from itself.
ORDER = (
    "utils",
    "anatomy",
    "methods",
    "plans",
    "attach",
    "reports",
    "exchange",
    "testing",
    "data",
    "tasks",
    "training",
    "callbacks",
    "profiles",
    "search",
    "benchmark",
    "cli",
    "__main__",
)
WITHOUT_LIGHTNING = ORDER[: ORDER.index("data")]
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics"}
# Extras and what only some runs need, which a function may import when it needs them.
OPTIONAL = {
    *("filelock", "litserve", "optuna", "psutil", "psycopg", "scipy", "sqlalchemy", "starlette"),
    *("bitsandbytes", "shtab", "torchao"),
    *(
        "matplotlib",
        "pydantic",
        "pytest",
        "wandb",
        "wandb_workspaces",
        "torch.nn.attention.flex_attention",
    ),
}
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def module_of(file: Path) -> str:
    parts = ["lightning_pelt", *file.with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def imports(tree: ast.AST, *, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Every imported name, and whether a function imports it; not those for type checking."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((f"{node.module}.{alias.name}", inside) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        else:
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(node, inside=inside or function)


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


def target(name: str) -> str | None:
    """The module of this package that an imported name comes from."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def folder(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.slow
def test_imports_run_one_way() -> None:
    for file in FILES:
        check_order(file)


def check_order(file: Path) -> None:
    own = folder(module_of(file))
    found = {name for name, _ in imports(parsed(file))}
    if not own:  # the package itself: what it imports eagerly needs no Lightning
        used = {folder(module) for name in found if (module := target(name))}
        assert used - {""} <= set(WITHOUT_LIGHTNING)
        return
    assert own in ORDER, f"{file} is in no folder of ORDER: add the folder where it belongs"
    later = set(ORDER[ORDER.index(own) + 1 :])
    wrong = {name for name in found if (module := target(name)) and folder(module) in later}
    assert not wrong, f"{file} imports {wrong}, which come after {own}"
    if own in WITHOUT_LIGHTNING:
        assert not {name for name in found if name.split(".")[0] in LIGHTNING}


@pytest.mark.slow
def test_functions_import_only_what_is_optional() -> None:
    for file in FILES:
        found = {name for name, inside in imports(parsed(file)) if inside}
        wrong = {
            name
            for name in found
            if not any(name == other or name.startswith(f"{other}.") for other in OPTIONAL)
            and not (target(name) and needs_an_extra(str(target(name))))
        }
        assert not wrong, f"{file} imports {wrong} in a function"


@cache
def needs_an_extra(module: str) -> bool:
    """Whether importing the module imports an extra, directly or not."""
    seen, waiting = set(), [module]
    while waiting:
        file = MODULES[waiting.pop()]
        for name, inside in imports(parsed(file)):
            if not inside and name.split(".")[0] in OPTIONAL:
                return True
            other = target(name)
            if not inside and other and other not in seen:
                seen.add(other)
                waiting.append(other)
    return False


@pytest.mark.slow
def test_no_file_imports_itself_through_others() -> None:
    graph: dict[str, set[str]] = {}
    for module, file in MODULES.items():
        found = {target(name) for name, _ in imports(parsed(file))}
        # A package imports its files to export them; that is no arrow between ideas.
        used = {other for other in found if other and other != module}
        graph[module] = set() if file.name == "__init__.py" else used - packages_above(module)
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def packages_above(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


# -- methods answer for themselves ----------------------------------------------------------------


def subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def ours(cls: type) -> set[str]:
    return {
        c.__name__ for c in subclasses(cls) if c.__module__.startswith("lightning_pelt.methods.")
    }


METHODS = ours(Method)
SUBMODULES = ours(Submodule) - {"GateLayer"}
NAMES = {c.name for c in subclasses(Method) if c.__module__.startswith("lightning_pelt.") and
         isinstance(getattr(c, "name", None), str)}  # fmt: skip
# What serves the profiles of X-PEFT, and nothing else, works on its masks.
OF_ONE_METHOD = ("profiles",)


@pytest.mark.slow
def test_no_file_outside_methods_asks_which_method_it_has() -> None:
    assert {"LoRA", "XPEFT", "Prefix"} <= METHODS and "lora" in NAMES
    wrong = {str(file): questions(file) for file in FILES if file.parts[0] != "methods"}
    wrong = {file: found for file, found in wrong.items() if found}
    assert not wrong, f"{wrong}: let Method answer instead, see methods/base.py"


def questions(file: Path) -> list[str]:
    """Lines that test for the class or the name of a method."""
    wrong: list[str] = []
    for node in ast.walk(parsed(file)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            asked = set(re.findall(r"\w+", ast.unparse(node.args[1])))
            known = METHODS if file.parts[0] in OF_ONE_METHOD else METHODS | SUBMODULES
            wrong += [f"line {line}: {ast.unparse(node)}"] if asked & known else []
        elif isinstance(node, ast.Compare):
            texts = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
            if NAMES & {text for text in texts if isinstance(text, str)}:
                wrong.append(f"line {line}: {ast.unparse(node)}")
            if "type(" in ast.unparse(node) and METHODS & set(
                re.findall(r"\w+", ast.unparse(node))
            ):
                wrong.append(f"line {line}: {ast.unparse(node)}")
    return wrong
