"""Methods of PEFT and AdapterHub, in an environment that has them; a script of one process.

It reads a request per line of stdin and writes an answer per line of stdout, both JSON. The
environment need not have this package, so the script loads the file beside it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def _peft(config: str, **options: Any) -> Callable[[Any], Any]:
    def prepare(model: Any) -> Any:
        peft = importlib.import_module("peft")
        return peft.get_peft_model(model, getattr(peft, config)(task_type="SEQ_CLS", **options))

    return prepare


def _adapters(config: str, **options: Any) -> Callable[[Any], Any]:
    def prepare(model: Any) -> Any:
        adapters = importlib.import_module("adapters")
        adapters.init(model)
        model.add_adapter("peer", config=getattr(adapters, config)(**options))
        model.train_adapter("peer")
        return model.train()

    return prepare


FLOOR = "floor"  # of its environment, whose transformers may be another
ATTENTION = ["query", "value"]
# The keys are those of PLANS, with the same sizes at the same places.
METHODS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "peft": {
        "lora": _peft("LoraConfig", r=8, lora_alpha=16, target_modules=ATTENTION),
        "ia3": _peft(
            "IA3Config",
            target_modules=["key", "value", "output.dense"],
            feedforward_modules=["output.dense"],
        ),
        "prefix": _peft(
            "PrefixTuningConfig",
            num_virtual_tokens=10,
            prefix_projection=True,
            encoder_hidden_size=512,
        ),
        "prefix-flat": _peft("PrefixTuningConfig", num_virtual_tokens=10),
    },
    "adapters": {
        "lora": _adapters("LoRAConfig", r=8, alpha=16),
        "adapter": _adapters("SeqBnConfig", reduction_factor=16),
        "prefix": _adapters("PrefixTuningConfig", prefix_length=10, bottleneck_size=512),
        "prefix-flat": _adapters("PrefixTuningConfig", prefix_length=10, flat=True),
        "ia3": _adapters("IA3Config"),
        "unipelt-apl": _adapters("UniPELTConfig"),
        "compacter": _adapters("CompacterConfig"),
        "compacter++": _adapters("CompacterPlusPlusConfig"),
    },
}


def listed() -> dict[str, list[str]]:
    """Libraries of this environment with their versions, and what can be measured of them."""
    found = {}
    for library, methods in METHODS.items():
        try:
            found[f"{library} {version(library)}"] = [FLOOR, *methods]
        except PackageNotFoundError:
            continue
    return found


class Answers:
    """Answers requests; libraries that print do not disturb them."""

    def __init__(self) -> None:
        # As a script, the folder of this file is where modules are looked for first.
        self.timing: Any = importlib.import_module("timing")
        self.training: Any = None

    def memory(self, *, name: str, setting: dict[str, Any]) -> int:
        return self.timing.memory(self._prepare(name), self.timing.Setting(**setting))

    def build(self, *, name: str, setting: dict[str, Any]) -> None:
        given = self.timing.Setting(**setting)
        self.training = self.timing.TimedTraining(self._prepare(name), given)

    def time_steps(self, *, steps: int) -> dict[str, Any]:
        return asdict(self.training.time_steps(steps))

    def _prepare(self, name: str) -> Callable[[Any], Any]:
        library, _, method = name.partition(":")
        return self.timing.frozen_floor if method == FLOOR else METHODS[library][method]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to stderr
    if sys.argv[1:] == ["--list"]:
        importlib.import_module("timing")  # torch and transformers are there
        print(json.dumps(listed()), file=answers)
        return
    known = Answers()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = {"result": getattr(known, request.pop("what"))(**request)}
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps(result), file=answers)


if __name__ == "__main__":
    main()
