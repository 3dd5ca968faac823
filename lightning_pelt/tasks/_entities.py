"""Entities of tag sequences, and how many of them are found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

Scheme = Literal["conll", "IOB1", "IOB2", "IOBES", "BILOU"]
Entity = tuple[str, int, int]  # type, first word, end
OUTSIDE = "O"
UNNAMED = "_"  # type of the tags B and I alone

# A pair of tags: prefixes of the first, of the second, and whether their types are equal.
Pairs = tuple[tuple[str, str, bool | None], ...]


class Rules(NamedTuple):
    """The entities that are valid in a scheme.

    Attributes:
        prefixes: of its tags, beside O.
        starts: pairs of tags between which an entity begins.
        inside: pairs within one.
        ends: pairs between which an entity ends; others make what was begun invalid.
    """

    prefixes: str
    starts: Pairs
    inside: Pairs
    ends: Pairs


ANY = "OBIESLU"
RULES: dict[str, Rules] = {
    "IOB1": Rules(
        "BI",
        starts=(("OB", "I", None), ("I", "I", False), ("BI", "B", True)),
        inside=(("BI", "I", True),),
        ends=(("BI", "O", None), ("BI", "I", False), ("I", "B", None), ("B", "B", True)),
    ),
    "IOB2": Rules(
        "BI",
        starts=((ANY, "B", None),),
        inside=(("BI", "I", True),),
        ends=(("BI", "OB", None), ("BI", "I", False)),
    ),
    "IOBES": Rules(
        "BIES",
        starts=((ANY, "BS", None),),
        inside=(("BI", "IE", True),),
        ends=(("ES", ANY, None),),
    ),
    "BILOU": Rules(
        "BILU",
        starts=((ANY, "BU", None),),
        inside=(("BI", "IL", True),),
        ends=(("LU", ANY, None),),
    ),
}
CONLL = "conll"
SCHEMES = (CONLL, *RULES)


def split_tag(tag: str) -> tuple[str, str]:
    """The prefix and the type of a tag.

    >>> split_tag("B-PER"), split_tag("O"), split_tag("I")
    (('B', 'PER'), ('O', '_'), ('I', '_'))
    """
    return tag[:1], tag[1:].lstrip("-") or UNNAMED


def check_tags(labels: Sequence[str], scheme: str) -> None:
    """Check that tags are those of a scheme.

    Raises:
        ValueError: a tag is not ``O`` or a prefix of the scheme with a type.
    """
    prefixes = RULES[scheme].prefixes if scheme != CONLL else "BIES"
    for label in labels:
        prefix, rest = label[:1], label[1:2]
        if label != OUTSIDE and (prefix not in prefixes or rest not in ("", "-")):
            expected = ", ".join([OUTSIDE, *(f"{each}-TYPE" for each in prefixes)])
            raise ValueError(
                f"the tag {label!r} is not one of the scheme {scheme!r}, whose tags are {expected}:"
                " name the tags with labels=[...] in the order of their indices, choose another "
                "scheme, or score words without entities with metrics=['accuracy']"
            )


def types_of(labels: Sequence[str]) -> list[str]:
    """The sorted types of entities.

    >>> types_of(["O", "B-PER", "I-PER", "B-LOC"])
    ['LOC', 'PER']
    """
    return sorted({split_tag(label)[1] for label in labels if label != OUTSIDE})


def entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    """The entities of a sequence of tags: type, first word and end.

    Args:
        tags: one per word.
        scheme: "conll" reads every sequence, as the script ``conlleval`` of CoNLL-2000 and
            seqeval's default mode: I-X begins an entity where none of its type continues. The other
            schemes find only entities that are written as the scheme demands, as seqeval's strict
            mode.

    >>> entities(["I-PER", "I-PER", "O", "B-LOC"], "conll")
    [('PER', 0, 2), ('LOC', 3, 4)]
    >>> entities(["I-PER", "I-PER", "O", "B-LOC"], "IOB2")
    [('LOC', 3, 4)]
    """
    pairs = [split_tag(tag) for tag in (*tags, OUTSIDE)]
    return _conll(pairs) if scheme == CONLL else _strict(pairs, RULES[scheme])


def _conll(pairs: Sequence[tuple[str, str]]) -> list[Entity]:
    found: list[Entity] = []
    before, kind, start = OUTSIDE, "", 0
    for index, (prefix, type_) in enumerate(pairs):
        other = type_ != kind
        if before != OUTSIDE and (before in "ES" or prefix in "BSO" or other):
            found.append((kind, start, index))
        if prefix != OUTSIDE and (prefix in "BS" or before in "ESO" or other):
            start = index
        before, kind = prefix, type_
    return found


def _strict(pairs: Sequence[tuple[str, str]], rules: Rules) -> list[Entity]:
    found: list[Entity] = []
    before, index = (OUTSIDE, UNNAMED), 0
    while index < len(pairs):
        start, first = index, pairs[index]
        index += 1
        if _match(before, first, rules.starts):
            while index < len(pairs) and _match(pairs[index - 1], pairs[index], rules.inside):
                index += 1
            if index < len(pairs) and _match(pairs[index - 1], pairs[index], rules.ends):
                found.append((first[1], start, index))
        before = pairs[index - 1]
    return found


def _match(first: tuple[str, str], second: tuple[str, str], pairs: Pairs) -> bool:
    same = first[1] == second[1]
    return any(
        first[0] in left and second[0] in right and equal in (None, same)
        for left, right, equal in pairs
    )


def entity_counts(
    predicted: Sequence[Sequence[str]],
    true: Sequence[Sequence[str]],
    types: Sequence[str],
    scheme: str,
) -> Tensor:
    """The numbers of entities of each type; (3, types) int64: both, predicted, true.

    Args:
        predicted: tags of each row.
        true: likewise.
        types: of the entities.
        scheme: see :func:`entities`.
    """
    counts: list[Counter[str]] = [Counter(), Counter(), Counter()]
    for guess, target in zip(predicted, true, strict=True):
        sets = set(entities(guess, scheme)), set(entities(target, scheme))
        for counter, found in zip(counts, (sets[0] & sets[1], *sets), strict=True):
            counter.update(kind for kind, _, _ in found)
    return torch.tensor([[counter[kind] for kind in types] for counter in counts])


class EntityScore(Metric):
    """Precision, recall or F1 of entities, from counts that are added over batches and ranks.

    An entity is right if its type, its first and its last word are. A score without a denominator
    is 0.

    Args:
        types: number of types.
        score: which of the three.
        of: "micro" counts all entities together; "macro" is the mean over the types that occur; an
            integer is the index of one type.
    """

    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(
        self,
        types: int,
        score: Literal["precision", "recall", "f1"] = "f1",
        *,
        of: Literal["micro", "macro"] | int = "micro",
    ) -> None:
        super().__init__()
        self.score, self.of = score, of
        zeros = torch.zeros(3, types, dtype=torch.int64)
        self.add_state("counts", zeros, dist_reduce_fx="sum")

    def update(self, counts: Tensor) -> None:
        """Add the counts of a batch, as :func:`entity_counts` gives them."""
        self.counts += counts.to(self.counts.device)

    def compute(self) -> Tensor:
        if self.of == "micro":
            return self._scores(self.counts.sum(1))
        if self.of != "macro":
            return self._scores(self.counts[:, self.of])
        occurs = self.counts[1:].sum(0) > 0
        scores = self._scores(self.counts[:, occurs])
        return scores.mean() if len(scores) else torch.zeros((), device=self.counts.device)

    def _scores(self, counts: Tensor) -> Tensor:
        both, predicted, true = counts.float()
        below = {"precision": predicted, "recall": true, "f1": (predicted + true) / 2}
        return both / below[self.score].clamp(min=0.5)
