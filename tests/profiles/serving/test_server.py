"""The server compared with a loop over profiles."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small import LABELS, WORDS, bert

from lightning_pelt import XPEFT, PELTModule, Plan, ProfileServer, ProfileStore, RandomBank
from lightning_pelt.methods.xpeft.masks import masks_of, profiles_of
from lightning_pelt.profiles import read_profile, write_profile
from lightning_pelt.profiles.store import UnknownProfile
from lightning_pelt.testing import awaken

BANK = RandomBank(size=20)
PEOPLE = ["ann", "bob", "cid", "dora", "eve"]
TEXTS = [" ".join(WORDS[i : i + 1 + i % 4]) for i in range(10)]


def trained(folder: Path, **options: Any) -> PELTModule:
    method = XPEFT(
        **{"bank": BANK, "k": 5, "scale": 8.0, "bottleneck": 4, "profiles": 5, **options}
    )
    module = PELTModule(bert(folder), Plan.uniform(method), labels=LABELS)
    module.configure_model()
    assert module.attachment is not None
    awaken(module.attachment, std=1.0)
    return module.eval()


SHARING = {
    "shared": {"norm": "shared"},
    "own norms": {"norm": "profile"},
    "own heads": {"norm": None, "head": "profile"},
}


@pytest.fixture(params=list(SHARING))
def module(request: pytest.FixtureRequest, tmp_path: Path) -> PELTModule:
    return trained(tmp_path / "bert", **SHARING[request.param])


@pytest.fixture
def store(module: PELTModule, tmp_path: Path) -> Iterator[ProfileStore]:
    with ProfileStore(tmp_path / "profiles.db") as store:
        store.put_many((name, read_profile(module, n)) for n, name in enumerate(PEOPLE))
        yield store


def single(module: PELTModule, text: str, person: str) -> dict[str, Any]:
    """The prediction for one row, from the logits."""
    tokens = dict(module.tokenizer([text], return_tensors="pt"))
    with torch.no_grad(), profiles_of(module, [PEOPLE.index(person)]):
        (answer,) = module.task.predict(module.model, tokens, labels=LABELS)  # type: ignore
    return answer


def assert_close(answers: list[dict[str, Any]], module: PELTModule, people: list[str]) -> None:
    assert len(answers) == len(people)
    for answer, text, person in zip(answers, TEXTS, people, strict=False):
        expected = single(module, text, person)
        assert answer["label"] == expected["label"]
        assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


@pytest.mark.parametrize("slots", [2, 3, 100])
def test_mixed_batches_equal_the_loop(module: PELTModule, store: ProfileStore, slots: int) -> None:
    """From the stored masks, also with more profiles than slots; cold and warm."""
    server = ProfileServer(module, store, slots=slots)
    people = [PEOPLE[i % 5] for i in range(10)]
    cold = server.predict(TEXTS, people)
    assert_close(cold, module, people)
    assert_close(server.predict(TEXTS, people), module, people)
    assert len({str(answer) for answer in server.predict(TEXTS[:1] * 5, PEOPLE)}) == 5


def test_a_new_version_is_used_immediately(module: PELTModule, store: ProfileStore) -> None:
    server = ProfileServer(module, store)
    before = server.predict(TEXTS[:1], ["ann"])
    store.put("ann", read_profile(module, 3))
    after = server.predict(TEXTS[:1], ["ann"])
    assert after != before
    assert after == server.predict(TEXTS[:1], ["dora"])


@pytest.mark.slow
def test_threads_get_the_answers_of_their_profiles(module: PELTModule, store: ProfileStore) -> None:
    server = ProfileServer(module, store, slots=2)
    expected = {name: server.predict(TEXTS, [name] * 10) for name in PEOPLE}
    found: dict[str, Any] = {}

    def ask(name: str) -> None:
        found[name] = [server.predict(TEXTS, [name] * 10) for _ in range(3)]

    threads = [threading.Thread(target=ask, args=(name,)) for name in PEOPLE]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in PEOPLE:
        for answers in found[name]:
            for one, other in zip(answers, expected[name], strict=True):
                assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_the_model_can_be_trained_beside_a_server(module: PELTModule, store: ProfileStore) -> None:
    """The server restores the model after each batch."""
    ProfileServer(module, store).predict(TEXTS, ["ann"] * 10)
    tokens = dict(module.tokenizer(TEXTS[:2], return_tensors="pt", padding=True))
    assert module.model is not None
    module.model(**tokens, profile=torch.tensor([0, 1])).logits.sum().backward()
    assert masks_of(module).logits[1].grad is not None


def test_unknown_profiles_and_bad_input(module: PELTModule, store: ProfileStore) -> None:
    server = ProfileServer(module, store)
    with pytest.raises(UnknownProfile, match="zoe"):
        server.predict(TEXTS[:2], ["ann", "zoe"])
    with pytest.raises(ValueError, match="2 texts and 1 profiles, expected one profile per text"):
        server.predict(TEXTS[:2], ["ann"])
    with pytest.raises(ValueError, match="text 1 is empty"):
        server.predict(["one", " "], ["ann", "bob"])
    assert server.predict(TEXTS[:1], ["ann"])
    with pytest.raises(ValueError, match="slots=0"):
        ProfileServer(module, store, slots=0)


def test_a_store_of_another_bank_raises(
    tmp_path: Path, module: PELTModule, store: ProfileStore
) -> None:
    other = trained(tmp_path / "other", bank=RandomBank(seed=1, size=20))
    digest = masks_of(other).bank.digest
    with pytest.raises(ValueError, match=f"belong to the bank {store.bank}, .* has {digest}"):
        ProfileServer(other, store)


@pytest.mark.parametrize("mask", ["hard", "soft"])
def test_a_written_profile_is_read_unchanged(tmp_path: Path, mask: str) -> None:
    module = trained(tmp_path, mask=mask, norm="profile", head="profile")
    kept = read_profile(module, 2)
    assert kept.hard == (mask == "hard")
    write_profile(module, 4, kept)
    again = read_profile(module, 4)
    if mask == "hard":
        assert again == kept
    torch.testing.assert_close(torch.tensor(again.masks), torch.tensor(kept.masks))
    assert again.head is not None
    assert kept.head is not None
    assert {name: tensor.tolist() for name, tensor in again.head.items()} == {
        name: tensor.tolist() for name, tensor in kept.head.items()
    }
    with pytest.raises(ValueError, match="there is no profile 5"):
        read_profile(module, 5)
