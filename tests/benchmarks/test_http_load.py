"""The arithmetic of the load test; ``profiles/serving/test_http.py`` runs it with a server."""

from __future__ import annotations

from http_load import RoundResult


def test_percentiles_are_measured_times() -> None:
    hundred = RoundResult(1.0, [float(n) for n in range(1, 101)])
    assert [hundred.percentile(share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert RoundResult(1.0, [3.0]).percentile(0.99) == 3.0
    assert RoundResult(1.0, [1.0, 2.0, 3.0]).percentile(0.5) == 2.0
