"""When a method is open, held or slower: phases on a time line, and nothing else.

Pure arithmetic: it knows neither torch nor a trainer, so what a schedule will do can be read off
without running anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from lightning_pelt.errors import unknown

State = Literal["open", "closed", "ramp"]
Unit = Literal["epoch", "step"]


@dataclass(frozen=True)
class Phase:
    """One stretch of a method's time line.

    Args:
        until: the epoch or optimizer step at which the phase is over; ``None`` for never.
        state: ``open`` (openness 1), ``closed`` (0) or ``ramp`` (``start`` to ``end``, linear).
        start: openness at which a ramp begins, in [0, 1].
        end: openness that a ramp has reached at ``until``, in [0, 1].
        held: whether the method's weights, its gates' included, stay exactly where they are.
        lr_factor: what the method's own learning rate is multiplied by; 0 or more.

    Raises:
        ValueError: for an unknown state, an openness outside [0, 1], a negative factor, an
            ``until`` that is not positive, or a ramp that has no end to ramp towards.
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
                    f"{name}={openness} of a phase is no openness: give a number from 0 (closed) "
                    "to 1 (open)"
                )
        if not 0.0 <= self.lr_factor < float("inf"):
            raise ValueError(
                f"lr_factor={self.lr_factor} cannot scale a learning rate: give a number from 0 "
                "up, 1 for the method's own rate"
            )
        if self.until is not None and self.until < 1:
            raise ValueError(
                f"until={self.until} ends a phase before it begins: give 1 or more, or leave it "
                "out for a phase without end"
            )
        if self.state == "ramp" and self.until is None and self.start != self.end:
            raise ValueError(
                f"a ramp from {self.start} to {self.end} needs `until`, the moment at which "
                f"{self.end} is reached"
            )

    @classmethod
    def of(cls, plain: Phase | Mapping[str, Any]) -> Phase:
        """A phase from the plain mapping that YAML has; a misspelt option names the nearest one."""
        if isinstance(plain, Phase):
            return plain
        options = [field.name for field in fields(cls)]
        for name in plain:
            if name not in options:
                raise unknown("option of a phase", name, options)
        return cls(**plain)


@dataclass(frozen=True)
class Setting:
    """What holds for a method at one moment."""

    open: float = 1.0
    held: bool = False
    lr_factor: float = 1.0


def evaluate(
    phases: Sequence[Phase], *, step: float = 0.0, epoch: float = 0.0, unit: Unit = "epoch"
) -> Setting:
    """The setting of one method at a moment of training.

    A method that is shut (openness 0) is held as well. Its gradients would be zeros, which still
    let AdamW decay its weights and forget its moments. After the last phase the method is open,
    free and at its own rate; if that phase was a ramp, the openness stays where the ramp ended.

    Args:
        phases: the method's phases in order.
        step: optimizer steps taken so far.
        epoch: epochs done so far; a fraction counts, so that a ramp over epochs is smooth.
        unit: which of the two the phases' ``until`` are measured in.
    """
    now = epoch if unit == "epoch" else step
    began = 0
    for phase in phases:
        if phase.until is None or now < phase.until:
            openness = _openness(phase, began, now)
            return Setting(openness, phase.held or openness == 0.0, phase.lr_factor)
        began = phase.until
    openness = phases[-1].end if phases and phases[-1].state == "ramp" else 1.0
    return Setting(openness, openness == 0.0)


def validate(name: str, phases: Sequence[Phase]) -> None:
    """Raise ``ValueError`` unless the phases of method ``name`` follow one another in time."""
    if not phases:
        raise ValueError(f"the schedule of {name!r} is empty: give it a phase, or leave it out")
    began = 0
    for number, phase in enumerate(phases, start=1):
        if phase.until is None:
            if number < len(phases):
                raise ValueError(
                    f"phase {number} of {name!r} has no `until`, so phase {number + 1} would "
                    "never come: give it one"
                )
        elif phase.until <= began:
            raise ValueError(
                f"phase {number} of {name!r} is over at {phase.until}, but the phase before it "
                f"lasts until {began}: `until` counts from the start of training and must increase"
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
