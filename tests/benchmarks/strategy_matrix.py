"""Which strategies of Lightning take the steps of one process, as a table.

    PYTHONPATH=tests python tests/benchmarks/strategy_matrix.py --out docs/strategies.md

runs twenty steps of a tiny BERT on two CPU processes, or on four with tensor parallelism, for every
strategy, plan and precision, each in a process of its own with a time limit, and compares the
weights with those of one process on the same global batches. A run in 32 bits is also saved on
these processes and resumed on one, and the other way round. Takes about an hour on two cores.
``--only`` runs the cells that the file lacks, ``--only 'ddp*/s4/*' '*/*/bf16-true'`` those that
match ``strategy/plan/precision``; other cells of the file stay.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsdp1_steps
import tensor_parallel_steps
import torch
import twenty_steps
from lightning.pytorch.strategies import ModelParallelStrategy
from scripts import output_of
from strategy_table import Cell, read_tables, tables
from tqdm import tqdm
from transformers.models.bert.modeling_bert import BertLayer
from twenty_steps import PLANS, fit, half, last

STRATEGIES = ["ddp", "ddp_spawn", "ddp_fork", "ddp_notebook", "fsdp1", "fsdp2", "fsdp2_tp"]
STARTED = ["ddp_spawn", "ddp_fork", "ddp_notebook"]  # run last: as ddp, but for their start
PRECISIONS = ["32-true", "bf16-mixed", "bf16-true"]
ONE = "one"
NAMES = {
    ONE: "one process, to 32 bits",
    "fsdp1": "FSDP1 (`FSDPStrategy`)",
    "fsdp2": "FSDP2 (`ModelParallelStrategy`)",
    "fsdp2_tp": "FSDP2 with tensor parallelism, 2 x 2",
}
GOAL = 1e-5  # in 32 bits
ON_A_GPU = "16-mixed"
NOT_RUN = "not run (needs a GPU)"


def cells() -> list[Cell]:
    """All cells, and in half precision what that alone changes."""
    return [
        Cell(strategy, plan, precision)
        for precision in [*PRECISIONS, ON_A_GPU]
        for strategy in ([ONE] if precision.startswith("bf16") else []) + STRATEGIES
        for plan in PLANS
    ]


def processes(strategy: str) -> dict[str, Any]:
    """The options of a trainer."""
    if strategy == ONE:
        return {}
    if strategy == "fsdp2":
        made: Any = ModelParallelStrategy(
            data_parallel_size=2,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend="gloo",
        )
    elif strategy == "fsdp2_tp":
        return tensor_parallel_steps.four()
    elif strategy == "fsdp1":
        fsdp1_steps.collect_on_cpu()
        made = fsdp1_steps.OnCPU(auto_wrap_policy={BertLayer}, process_group_backend="gloo")
    else:
        made = strategy
    return {"strategy": made, "devices": 2}


def run_cell(cell: Cell, folder: Path, backbone: str, *, back: bool) -> None:
    """The fits of a cell; those that resume begin with the halves of others.

    Args:
        back: resume its half on one process, and nothing else.
    """
    options: dict[str, Any] = {"plan": cell.plan, "precision": cell.precision}
    own = folder / cell.folder
    if back:
        fit(own / "back", backbone, resume=half(own / "afresh"), **options)
        return
    fit(own / "afresh", backbone, **options, **processes(cell.strategy))
    if cell.precision == PRECISIONS[0] and cell.strategy != ONE:
        one = folder / cell._replace(strategy=ONE).folder / "afresh"
        fit(own / "from_one", backbone, resume=half(one), **options, **processes(cell.strategy))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def distance(left: Path, right: Path) -> float:
    """The largest difference of two weights."""
    one, other = weights(left), weights(right)
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())[:3]
    return max(float((other[name].float() - one[name].float()).abs().max()) for name in one)


def start(cell: Cell, folder: Path, backbone: str, *, back: bool = False) -> str:
    """Run a cell in a process; returns what it says of an error, or nothing."""
    options = ["--cell", *cell, "--folder", str(folder), *(["--back"] if back else [])]
    status, output = output_of([__file__, *options, backbone])
    if status == 0:
        return ""
    errors = [line for line in output.splitlines() if "Error" in line]
    return (errors or output.splitlines() or ["failed without output"])[-1].replace("|", "/")


def result(cell: Cell, folder: Path, backbone: str) -> str:
    """The text of a cell of the table."""
    one = folder / cell._replace(strategy=ONE).folder / "afresh"
    exact = folder / Cell(ONE, cell.plan, PRECISIONS[0]).folder / "afresh"
    if cell.strategy == ONE:
        return f"{distance(last(exact), last(one)):.0e}"
    if failure := start(cell, folder, backbone):
        return failure
    single = cell.precision == PRECISIONS[0]
    if single and (failure := start(cell, folder, backbone, back=True)):
        return failure
    runs = ["afresh", "from_one", "back"] if single else ["afresh"]
    found = [distance(last(one), last(folder / cell.folder / run)) for run in runs]
    text = ", ".join(f"{each:.0e}" for each in found)
    within = GOAL if single else distance(last(exact), last(one))
    return f"**{text}**" if max(found) > within else text


def run(asked: Sequence[Cell], folder: Path) -> Iterator[tuple[Cell, str]]:
    """The results of cells, after the runs of one process that they are compared with."""
    backbones = {}
    for plan in dict.fromkeys(cell.plan for cell in asked):
        (folder / plan).mkdir()
        backbones[plan] = twenty_steps.backbone(folder / plan, plan)
    singles = [cell._replace(strategy=ONE) for cell in asked]
    exact = [cell._replace(precision=PRECISIONS[0]) for cell in singles]
    for cell in tqdm(dict.fromkeys([*exact, *singles]), desc="one process"):
        if failure := start(cell, folder, backbones[cell.plan]):
            raise SystemExit(f"{cell}: {failure}")
    for cell in tqdm(asked, desc="several processes"):
        yield cell, result(cell, folder, backbones[cell.plan])


def selected(only: Sequence[str] | None, known: Mapping[Cell, str]) -> list[Cell]:
    """The cells to run: all, those that match a pattern, or those without a result."""
    there = [cell for cell in cells() if cell.precision != ON_A_GPU]
    there.sort(key=lambda cell: (cell.precision in PRECISIONS[1:], cell.strategy in STARTED))
    if only is None:
        return there
    if not only:
        return [cell for cell in there if cell not in known]
    found = [cell for cell in there if any(fnmatch("/".join(cell), each) for each in only)]
    if not found:
        raise SystemExit(f"no cell matches {', '.join(only)}: expected strategy/plan/precision")
    return found


def versions() -> str:
    packages = ("torch", "lightning", "transformers")
    named = ", ".join(f"{package} {version(package)}" for package in packages)
    return f"{named}, Python {platform.python_version()}"


def known_results(path: Path | None) -> dict[Cell, str]:
    """The results in a file of these versions."""
    if path is None or not path.exists():
        return {}
    text = path.read_text()
    if versions() not in text:
        raise SystemExit(f"{path} is of other versions than {versions()}: run without --only")
    return {cell: found for cell, found in read_tables(text, NAMES).items() if cell in cells()}


TEXT = """# Strategies

Printed with {versions} by

```bash
PYTHONPATH=tests python tests/benchmarks/strategy_matrix.py --out docs/strategies.md
```

Two CPU processes and one process train the same global batches for twenty steps, with warmup, a
held method, an opening method, pruning and a monitor. With tensor parallelism there are four
processes, of which two split each weight of the base. A number is the largest difference of a
weight after the last step: from the start; resumed on these processes from the half of one; and
resumed on one process from the half of these. In 32 bits the goal is 1e-5, and what misses it is in
bold. In bfloat16 only the first of the three is run. There sums of other halves round otherwise,
and AdamW makes steps of nearly the same size of small and of large gradients, so the first row says
what the precision itself costs: the difference of one process in bfloat16 to one process in 32
bits. What is further from one process in bfloat16 than that is in bold. The 4 of `compacter` in
`bf16-true` is not of the training: torch draws other random values in bfloat16, and its factors
start elsewhere. Cells with a dash have not been run; `--only` runs them and keeps the others.

The plans: `unipelt` is gated adapter, prefix and LoRA; `compacter` is gated Compacter with its
shared rule, a prompt, LoRA and trained norms; `xpeft` has a mask over a frozen bank beside a prefix
and LoRA; `groups` has adapter and LoRA in one group of blocks, and BitFit and a prefix in another;
`s4` is the S4-model with its four groups, on four blocks.

{table}

In `bf16-mixed` too, FSDP1 computes with weights in bfloat16. DeepSpeed runs by hand, since
Lightning's `DeepSpeedStrategy` asks for a GPU: `pytest tests/distributed/test_deepspeed.py`
compares ZeRO-1, 2 and 3 on two processes with one (1e-5 after 8 steps, saved and resumed). Sharded
checkpoints: `pytest -m "" tests/distributed/`. Several profiles of X-PEFT, with different ones in
the batches of the two processes, under DDP and FSDP2: `pytest -m ""
tests/profiles/test_training.py` (1e-5 after 10 steps).

## Tensor parallelism

`ModelParallelStrategy(data_parallel_size=D, tensor_parallel_size=T)` lets T processes share each
frozen linear layer of the blocks (`nn.Linear`, not quantised, with a number of rows that T
divides). Each holds its rows of the weight and computes its part of the output, which all of them
gather. So submodules, gates and prefixes at all sites get whole tensors and give the same results
on the T processes. This saves the memory of weights, not that of activations, and takes two
collectives for each layer: plain data parallelism is faster where the weights fit.

`PELTModule` does this itself. A module of yours with `PELTCallback` calls, in `configure_model`,
`attach(model, plan)`, then `split_base(attachment, self.device_mesh["tensor_parallel"])`, then
`fully_shard(...)` with `self.device_mesh["data_parallel"]`. torch's `parallelize_module` may split
layers that no submodule extends, and whose outputs no submodule reads in parts: `ColwiseParallel`
queries, keys and values with `RowwiseParallel` outputs beside an adapter at the feed-forward layer
are tested. On layers with submodules it fails (`'ModuleDict' object has no attribute 'weight'`),
or the fit refuses it by name.

The T processes of a layer have the same batches and must draw the same random numbers: the seed of
the first holds for all, and a fit whose processes start with different trained weights, such as a
head from another seed, is refused. So are losses that compare the rows of all processes
(`Contrastive`, `SentenceSimilarity`). `WritePredictions` writes one file for each D.
`pytest -m "" tests/distributed/test_tensor_parallel.py` compares with one process, also with
dropout.
"""


def page(results: Mapping[Cell, str]) -> str:
    return TEXT.format(versions=versions(), table=tables(results, cells(), NAMES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the file of the table; by default it is printed")
    parser.add_argument("--only", nargs="*", metavar="CELL", help="see above")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--back", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("backbone", nargs="?", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.cell:
        run_cell(Cell(*asked.cell), asked.folder, asked.backbone, back=asked.back)
        return
    known = {} if asked.only is None else known_results(asked.out)
    known |= {cell: NOT_RUN for cell in cells() if cell.precision == ON_A_GPU}
    with TemporaryDirectory() as name:
        for cell, found in run(selected(asked.only, known), Path(name)):
            known[cell] = found
            if asked.out:  # --only continues from here after an interrupt
                asked.out.write_text(page(known))
    if not asked.out:
        print(page(known))


if __name__ == "__main__":
    main()
