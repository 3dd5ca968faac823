"""Schedules evaluated by hand."""

from __future__ import annotations

import pytest

from lightning_pelt.training.phases import MethodSetting, Phase, evaluate, validate

JOIN_LATE = [Phase(until=2, state="closed"), Phase(until=6, state="ramp", lr_factor=0.5)]


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        (0, MethodSetting(0.0, True, 1.0)),
        (1.99, MethodSetting(0.0, True, 1.0)),
        (2, MethodSetting(0.0, True, 0.5)),  # the ramp starts closed
        (3, MethodSetting(0.25, False, 0.5)),
        (4.5, MethodSetting(0.625, False, 0.5)),
        (6, MethodSetting(1.0, False, 1.0)),
        (100, MethodSetting(1.0, False, 1.0)),
    ],
)
def test_a_method_that_joins_late(epoch, expected):
    assert evaluate(JOIN_LATE, epoch=epoch) == expected


def test_steps_are_counted_instead_of_epochs_when_asked():
    assert evaluate(JOIN_LATE, step=3, epoch=0, unit="step").open == 0.25
    assert evaluate(JOIN_LATE, step=3, epoch=0, unit="epoch").open == 0.0


def test_a_last_ramp_keeps_its_end_and_everything_else_ends_open():
    fade = [Phase(until=4, state="ramp", start=1.0, end=0.0)]
    assert [evaluate(fade, epoch=e).open for e in (0, 1, 3, 4, 9)] == [1.0, 0.75, 0.25, 0.0, 0.0]
    assert evaluate(fade, epoch=4).held
    assert evaluate([Phase(until=1, held=True)], epoch=1) == MethodSetting()
    assert evaluate([Phase(state="closed")], epoch=10**6) == MethodSetting(0.0, True)


def test_a_ramp_may_have_equal_ends():
    level = [Phase(state="ramp", start=0.3, end=0.3)]
    validate("lora", level)
    assert evaluate(level, epoch=7) == MethodSetting(0.3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state": "closd"}, "unknown state of a phase 'closd': did you mean 'closed'"),
        ({"start": -0.1}, r"start=-0.1 .* from 0 \(closed\) to 1 \(open\)"),
        ({"end": 1.5}, "end=1.5"),
        ({"lr_factor": -1.0}, "lr_factor=-1.0"),
        ({"lr_factor": float("nan")}, "lr_factor=nan"),
        ({"until": 0}, "until=0 ends a phase before it begins"),
        ({"state": "ramp"}, "give `until`"),
    ],
)
def test_a_bad_phase_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Phase(**options)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "the schedule of 'lora' is empty"),
        ([Phase(until=3), Phase(until=3)], "phase 2 of 'lora' ends at 3, but .* at 3"),
        ([Phase(until=3), Phase(until=2)], "must increase"),
        ([Phase(), Phase(until=2)], "phase 1 of 'lora' has no `until`"),
    ],
)
def test_phases_must_be_in_order_of_time(phases, message):
    with pytest.raises(ValueError, match=message):
        validate("lora", phases)


def test_plain_mappings_become_phases():
    assert Phase.from_config({"until": 2, "state": "closed"}) == Phase(2, "closed")
    assert Phase.from_config(JOIN_LATE[0]) is JOIN_LATE[0]
    with pytest.raises(ValueError, match="'lr_facter': did you mean 'lr_factor'"):
        Phase.from_config({"lr_facter": 0.1})
