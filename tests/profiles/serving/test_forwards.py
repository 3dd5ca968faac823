"""Which rows share a forward, compared with all ways to share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from small import WORDS
from torch import Tensor

from lightning_pelt import ProfileServer
from lightning_pelt.profiles.serving import server
from lightning_pelt.profiles.serving._forwards import split_by_length


def cost(forwards: list[list[int]], lengths: list[int], fixed: int) -> int:
    return sum(fixed + len(rows) * max(lengths[row] for row in rows) for rows in forwards)


def ways(lengths: list[int]) -> Iterator[list[list[int]]]:
    """All ways to cut the sorted rows."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    for cuts in range(len(order)):
        for places in combinations(range(1, len(order)), cuts):
            yield [order[a:b] for a, b in pairwise((0, *places, len(order)))]


@pytest.mark.parametrize("fixed", [0, 1, 7, 48, 1000])
@pytest.mark.parametrize("rows", [1, 2, 5, 9])
def test_no_other_cut_costs_less(rows: int, fixed: int) -> None:
    for seed in range(5):
        lengths = np.random.default_rng(seed).integers(1, 40, rows).tolist()
        found = split_by_length(lengths, fixed)
        assert sorted(row for forward in found for row in forward) == list(range(rows))
        assert cost(found, lengths, fixed) == min(
            cost(way, lengths, fixed) for way in ways(lengths)
        )


def test_rows_of_one_length_share_a_forward_in_their_order() -> None:
    assert split_by_length([5] * 6, 0) == [[0, 1, 2, 3, 4, 5]]
    assert split_by_length([], 48) == []


@pytest.mark.parametrize(("fixed", "forwards"), [(0, 3), (10_000, 1)])
def test_answers_do_not_depend_on_how_rows_are_split(
    in_process: ProfileServer, monkeypatch: pytest.MonkeyPatch, fixed: int, forwards: int
) -> None:
    """Each row has its text, its profile and its place."""
    texts = [" ".join(WORDS[:count]) for count in (2, 9, 2, 5, 9, 5)]
    people = ["ann", "bob", "cid", "ann", "cid", "bob"]
    alone = [in_process.predict([text], [who])[0] for text, who in zip(texts, people, strict=True)]
    assert len({str(answer) for answer in alone}) == 6
    shapes: list[tuple[int, ...]] = []

    def look(module: torch.nn.Module, args: tuple, kwargs: dict[str, Tensor]) -> None:
        shapes.append(tuple(kwargs["input_ids"].shape))

    monkeypatch.setattr(server, "FIXED_ON_CPU", fixed)
    model = in_process.module.model
    assert model is not None
    hook = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        found = in_process.predict(texts, people)
    finally:
        hook.remove()
    assert len(shapes) == forwards
    assert [rows for rows, _ in shapes] == ([2, 2, 2] if forwards == 3 else [6])
    for one, other in zip(found, alone, strict=True):
        assert one["label"] == other["label"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], rel=1e-4)
