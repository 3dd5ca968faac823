"""Strategies that would move profiles which a batch does not name."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from zoo import build

from lightning_pelt import XPEFT, Plan, RandomBank, attach
from lightning_pelt.training.strategy_checks import check_strategy


def check(strategy: type, model: nn.Module, *, profiles: int = 3) -> None:
    plan = Plan.uniform(XPEFT(RandomBank(size=4), profiles=profiles, k=2))
    kind = type(strategy.__name__, (strategy,), {"model": model, "__init__": lambda self: None})
    trainer: Any = SimpleNamespace(strategy=kind())
    check_strategy(trainer, attach(build("bert"), plan))


@pytest.fixture
def alone() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("unused", "static"), [(False, False), (True, True)])
def test_ddp_has_to_leave_out_unused_parameters(unused: bool, static: bool) -> None:
    model = DistributedDataParallel(
        nn.Linear(2, 2), find_unused_parameters=unused, static_graph=static
    )
    with pytest.raises(ValueError, match=r"xpeft trains only .*'ddp_find_unused_parameters_true'"):
        check(DDPStrategy, model)
    check(DDPStrategy, model, profiles=1)
    check(DDPStrategy, DistributedDataParallel(nn.Linear(2, 2), find_unused_parameters=True))


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_make_a_missing_gradient_zero(strategy: type) -> None:
    with pytest.raises(ValueError, match=rf"xpeft trains only .*{strategy.__name__} .*FSDP2"):
        check(strategy, nn.Linear(2, 2))
    check(strategy, nn.Linear(2, 2), profiles=1)
