"""Tables of plans, against numbers worked out by hand."""

from __future__ import annotations

import pytest
from reports.plan_models import FIRST, line, small_bert, small_t5, two_groups

from lightning_pelt import (
    S4,
    Adapter,
    Design,
    FullFineTuning,
    Gate,
    Group,
    LoRA,
    Plan,
    UniPELT,
    attach,
)
from lightning_pelt.reports.plan_breakdown import break_down
from lightning_pelt.reports.plan_table import describe, format_breakdown


@pytest.mark.parametrize("gate", [None, Gate()], ids=["plain", "gated"])
def test_a_designs_table(gate: Gate | None) -> None:
    found = break_down(attach(small_bert(), two_groups(gate)))
    text = format_breakdown(found)
    names = ["adapter", "lora", "prefix", "bitfit"]
    assert line(text, "block") == ["group", *names, "total", "share", "filled"]
    assert line(text, "encoder  0") == FIRST
    assert line(text, "encoder  1") == ["2", "-", "-", "l=15", "480", "112", "592", "600", "99%"]
    assert line(text, "total") == ["296", "256", "480", "112", "1,144", "1,200", "95%"]
    share = f"{1_144 / found.backbone:.3%}"
    assert line(text, "of backbone")[-1] == share
    assert line(text, "norms") == ["frozen"]
    if gate is None:
        assert line(text, "gates") == ["none"]
        return
    # Gates of 16 weights and a bias: one per adapter, of q and v, of the prefix, and of the inputs
    # of six linear layers, the last of which is 32 wide.
    by_method, besides = [each for each in text.splitlines() if each.startswith("gates")]
    assert by_method.split()[1:] == ["34", "34", "17", f"{5 * 17 + 33}", f"{34 + 34 + 17 + 118}"]
    assert besides == "gates     203, counted separately"


def test_a_designs_line() -> None:
    plan = two_groups()
    found = break_down(attach(small_bert(), plan))
    first, second = describe(plan, found).splitlines()
    assert first == (
        "Design: uniform of 1, 1 tuned blocks, stacks concat; (A,L), (P,B); uniform over blocks"
    )
    assert second.startswith("budget 1,200 (") and "met with 1,144 (95.3% of it, " in second
    assert describe(UniPELT(), break_down(attach(small_bert(), UniPELT()))) == "UniPELT"


def test_a_block_that_cannot_fill_its_share_is_marked() -> None:
    """Shares of 120: B always has 112, A and P at size 1 have 32 + 66 + 32."""
    found = break_down(attach(small_bert(), Design(["B", "AP"], 240, pattern="uniform")))
    text = format_breakdown(found)
    assert line(text, "encoder  0")[-5:] == ["112", "120", "93%", "under", "budget"]
    assert line(text, "encoder  1")[-3:] == ["130", "120", "108%"]


@pytest.mark.slow
def test_the_line_of_a_design_per_stack_names_both_stacks() -> None:
    plan = S4(0.3, stacks="per_stack")
    found = break_down(attach(small_t5(4), plan))
    assert "spindle of encoder 1, 1, 1, 1; decoder 1, 1, 1, 1 tuned" in describe(plan, found)


@pytest.mark.slow
def test_groups_are_separated_by_empty_lines() -> None:
    """Without several groups there is neither a column nor an empty line."""
    plan = Plan([Group([LoRA(r=2)], "0-1"), Group([Adapter(3)], "1-2")])
    text = format_breakdown(break_down(attach(small_bert(4), plan)))
    rows = text.splitlines()
    assert rows[0].split() == ["block", "group", "lora", "adapter", "total"]
    assert [bool(row) for row in rows[2:9]] == [True, False, True, False, True, False, True]
    assert line(text, "encoder  1") == ["1+2", "r=2", "128", "m=3", "115", "243"]
    assert line(text, "encoder  3") == ["-", "-", "-", "0"]
    text = format_breakdown(break_down(attach(small_bert(), Plan.uniform(LoRA()))))
    assert "group" not in text
    assert "" not in text.split("\n\n")[0].splitlines()


def test_the_lines_below_the_table() -> None:
    text = format_breakdown(break_down(attach(small_bert(), UniPELT(norms=True))))
    deployed = [int(n.replace(",", "")) for n in line(text, "deployed")]
    assert deployed[1] == 10 * 2 * 16 * 2  # prefixes: keys and values of two blocks
    assert line(text, "norms") == ["160"]  # of five layer norms of 16
    full = format_breakdown(break_down(attach(small_bert(), FullFineTuning())))
    assert "block" not in full.replace("backbone", "")
    assert line(full, "backbone")[-1] == "trained"
