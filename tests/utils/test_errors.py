from __future__ import annotations

from lightning_pelt.utils.errors import unknown


def test_the_nearest_option_is_named_and_all_are_listed() -> None:
    error = unknown("stage", "grouping", ["groupings", "letters"])
    assert isinstance(error, ValueError)
    assert str(error) == (
        "unknown stage 'grouping': did you mean 'groupings'? It must be one of: groupings, letters"
    )


def test_a_name_far_from_every_option_gets_no_hint() -> None:
    assert str(unknown("stage", "xyz", [1, 2])) == "unknown stage 'xyz': It must be one of: 1, 2"
    assert "(none exist)" in str(unknown("stage", "xyz", []))


def test_a_remedy_replaces_the_list_of_options() -> None:
    error = unknown("profile", "an", ["ann", "bob"], remedy="add rows of it")
    assert str(error) == "unknown profile 'an': did you mean 'ann'? add rows of it"
