"""Callbacks, one behaviour each."""

from lightning_pelt.callbacks._plan_record import (
    instantiate_with_plan,
    instantiate_with_plan_by_cli,
    trust_instantiators,
)
from lightning_pelt.callbacks.finite_guard import FiniteGuard
from lightning_pelt.callbacks.gate_monitor import GateMonitor
from lightning_pelt.callbacks.gate_schedule import GateSchedule
from lightning_pelt.callbacks.mask_temperature import MaskTemperature
from lightning_pelt.callbacks.parameter_count import ParameterCount
from lightning_pelt.callbacks.pelt import PELTCallback
from lightning_pelt.callbacks.sample_table import SampleTable
from lightning_pelt.callbacks.trunk_cache import TrunkCache
from lightning_pelt.callbacks.write_predictions import WritePredictions

__all__ = [
    "FiniteGuard",
    "GateMonitor",
    "GateSchedule",
    "MaskTemperature",
    "PELTCallback",
    "ParameterCount",
    "SampleTable",
    "TrunkCache",
    "WritePredictions",
    "instantiate_with_plan",
    "instantiate_with_plan_by_cli",
]

trust_instantiators()  # so that load_from_checkpoint may call them
