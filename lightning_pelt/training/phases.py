"""Phases of a schedule: when a method is open, held, or trained at another rate.

Plain arithmetic without torch or a trainer, so that a schedule can be evaluated before it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from lightning_pelt.utils.errors import unknown

State = Literal["open", "closed", "ramp"]
Unit = Literal["epoch", "step"]


@dataclass(frozen=True)
class Phase:
    """One phase of a method in a :class:`~lightning_pelt.GateSchedule`.

    Args:
        until: the epoch or optimizer step at which the phase ends; None for a phase without end.
        state: ``open`` (openness 1), ``closed`` (0) or ``ramp`` (linear from ``start`` to ``end``).
        start: openness at the start of a ramp, in [0, 1].
        end: openness at the end of a ramp, in [0, 1].
        held: whether the method's weights and those of its gates stay unchanged.
        lr_factor: factor of the method's learning rate, 0 or more.

    Raises:
        ValueError: an unknown state, an openness outside [0, 1], a negative factor, an ``until``
            that is not positive, or a ramp without ``until``.

    Example:
        >>> join_late = [Phase(until=2, state="closed"), Phase(until=6, state="ramp")]
        >>> [evaluate(join_late, epoch=epoch).open for epoch in (0, 2, 4, 6)]
        [0.0, 0.0, 0.5, 1.0]
    """

    until: int | None = None
    state: State = "open"
    start: float = 0.0
    end: float = 1.0
    held: bool = False
    lr_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.state not in get_args(State):
            raise unknown("state of a phase", self.state, get_args(State))
        for name, openness in (("start", self.start), ("end", self.end)):
            if not 0.0 <= openness <= 1.0:
                raise ValueError(
                    f"{name}={openness} of a phase is outside [0, 1]: give an openness from "
                    "0 (closed) to 1 (open)"
                )
        if not 0.0 <= self.lr_factor < float("inf"):
            raise ValueError(
                f"lr_factor={self.lr_factor} is negative or not finite: give 0 or more; 1 keeps "
                "the learning rate of the method"
            )
        if self.until is not None and self.until < 1:
            raise ValueError(
                f"until={self.until} ends a phase before it begins: give 1 or more, or omit it for "
                "a phase without end"
            )
        if self.state == "ramp" and self.until is None and self.start != self.end:
            raise ValueError(
                f"a ramp from {self.start} to {self.end} has no end: give `until`, the epoch or "
                f"step at which it reaches {self.end}"
            )

    @classmethod
    def from_config(cls, config: Phase | Mapping[str, Any]) -> Phase:
        """A phase from a mapping, as YAML gives it.

        Raises:
            ValueError: an unknown option; the message names the nearest one.
        """
        if isinstance(config, Phase):
            return config
        options = [field.name for field in fields(cls)]
        for name in config:
            if name not in options:
                raise unknown("option of a phase", name, options)
        return cls(**config)


@dataclass(frozen=True)
class MethodSetting:
    """The openness, hold and learning-rate factor of a method at one moment."""

    open: float = 1.0
    held: bool = False
    lr_factor: float = 1.0


def evaluate(
    phases: Sequence[Phase], *, step: float = 0.0, epoch: float = 0.0, unit: Unit = "epoch"
) -> MethodSetting:
    """The setting of a method at one moment of training.

    A closed method (openness 0) is also held: its gradients would be zeros, with which AdamW still
    decays weights and moments. After the last phase the method is open, not held, and at its own
    learning rate; after a ramp it keeps the ramp's last openness.

    Args:
        phases: the method's phases in order.
        step: number of optimizer steps taken.
        epoch: number of epochs completed, with a fraction, so that a ramp over epochs is smooth.
        unit: the unit of ``until``: ``epoch`` or ``step``.
    """
    now = epoch if unit == "epoch" else step
    began = 0
    for phase in phases:
        if phase.until is None or now < phase.until:
            openness = _openness(phase, began, now)
            return MethodSetting(openness, phase.held or openness == 0.0, phase.lr_factor)
        began = phase.until
    openness = phases[-1].end if phases and phases[-1].state == "ramp" else 1.0
    return MethodSetting(openness, openness == 0.0)


def validate(name: str, phases: Sequence[Phase]) -> None:
    """Check that the phases of method ``name`` are in order of time.

    Raises:
        ValueError: there is no phase, or a phase does not end after the one before it.
    """
    if not phases:
        raise ValueError(f"the schedule of {name!r} is empty: give a phase, or omit the method")
    began = 0
    for number, phase in enumerate(phases, start=1):
        if phase.until is None:
            if number < len(phases):
                raise ValueError(
                    f"phase {number} of {name!r} has no `until`, so phase {number + 1} would "
                    "never start: give the epoch or step at which it ends"
                )
        elif phase.until <= began:
            raise ValueError(
                f"phase {number} of {name!r} ends at {phase.until}, but the phase before it ends "
                f"at {began}: `until` counts from the start of training and must increase"
            )
        else:
            began = phase.until


def _openness(phase: Phase, began: int, now: float) -> float:
    if phase.state != "ramp":
        return 1.0 if phase.state == "open" else 0.0
    if phase.until is None:
        return phase.end
    done = (now - began) / (phase.until - began)
    return phase.start + (phase.end - phase.start) * done
