"""The distribution of scores, against numbers counted by hand."""

from __future__ import annotations

from lightning_pelt.reports.distribution import distribution


def test_quantiles_bars_and_the_lowest() -> None:
    scores = {f"user{i}": i / 10 + 0.05 for i in range(10)} | {"low": 0.0, "high": 1.0}
    quantiles, bars, lowest = distribution(scores).split("\n\n")
    head, numbers = (line.split() for line in quantiles.splitlines())
    found = dict(zip(head, map(float, numbers), strict=True))
    assert (found["min"], found["max"], found["mean"], found["median"]) == (0.0, 1.0, 0.5, 0.5)
    counts = [int(line.split()[3]) for line in bars.splitlines()]
    assert counts == [2, 1, 1, 1, 1, 1, 1, 1, 1, 2]
    assert [line.count("#") for line in bars.splitlines()] == [40, *[20] * 8, 40]
    assert lowest.splitlines()[1:4] == ["0.0000  low", "0.0500  user0", "0.1500  user1"]
    assert len(lowest.splitlines()) == 11


def test_one_score_for_all() -> None:
    """For example, one user."""
    text = distribution({"ann": 0.25})
    assert text.splitlines()[1].split() == ["0.2500"] * 8
    assert "0.2500  ann" in text
