"""Steps of a plan under DeepSpeed's ZeRO, for each rank of ``torch.distributed.run``; a script.

Lightning's ``DeepSpeedStrategy`` asks for a GPU, so the engine is used by hand.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from callbacks.tiny import BATCH, loader
from torch import distributed
from transformers import PreTrainedModel
from twenty_steps import PLANS
from zoo import build

from lightning_pelt import XPEFT, Plan, RandomBank, attach

# pytest imports this script for its docstrings, without DeepSpeed too.
deepspeed = pytest.importorskip("deepspeed", exc_type=ImportError)

PLANS = PLANS | {"xpeft": Plan.uniform(XPEFT(RandomBank(size=4), k=2))}
STEPS, HALF = 8, 4


def model_of(plan: str) -> PreTrainedModel:
    model = build("bert")
    attach(model, PLANS[plan])
    return model.eval()  # dropout would differ from rank to rank


def optimizer_of(model: PreTrainedModel) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-2)


def one_process(plan: str) -> list[float]:
    """The losses without DeepSpeed."""
    model = model_of(plan)
    optimizer = optimizer_of(model)
    losses = []
    for batch in loader(STEPS):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def engine_of(plan: str, stage: int) -> Any:
    model = model_of(plan)
    config = {
        "train_micro_batch_size_per_gpu": BATCH // distributed.get_world_size(),
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,  # DeepSpeed clips to 1.0 unless it is told
    }
    return deepspeed.initialize(model=model, optimizer=optimizer_of(model), config=config)[0]


def steps(engine: Any, numbers: range) -> list[float]:
    """The losses of the global batches, of which every rank has a part."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    losses = []
    for number, batch in enumerate(loader(STEPS)):
        if number in numbers:
            loss = engine(**{name: value[part] for name, value in batch.items()}).loss
            engine.backward(loss)
            engine.step()
            total = loss.detach().clone()
            distributed.all_reduce(total)
            losses.append(total.item() / world)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("plans", nargs="+")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    deepspeed.init_distributed(dist_backend="gloo")
    found = {}
    for plan in asked.plans:
        for stage in (1, 2, 3):
            engine = engine_of(plan, stage)
            losses = steps(engine, range(HALF))
            engine.save_checkpoint(asked.folder / f"{plan}-{stage}", exclude_frozen_parameters=True)
            losses += steps(engine, range(HALF, STEPS))
            resumed = engine_of(plan, stage)
            resumed.load_checkpoint(asked.folder / f"{plan}-{stage}", load_module_strict=False)
            found[f"{plan}-{stage}"] = losses, steps(resumed, range(HALF, STEPS))
    if distributed.get_rank() == 0:
        (asked.folder / "losses.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
