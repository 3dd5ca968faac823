"""The study on authors with a tiny model, and its arithmetic."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import authors
import pytest
import small
import torch
from adapter_per_profile import AdapterPerProfile, ProfileAdapters
from author_fits import SETUPS, Model, SharedSettings, bank_of, fit

from lightning_pelt.methods.xpeft.masks import masks_of

AUTHORS = ("Ann", "Bob", "Cem")


@pytest.fixture
def shared(tmp_path: Path) -> SharedSettings:
    """Three authors with rows of two labels, and a BERT 16 wide."""
    words = {"low": "one two", "high": "red blue"}
    for split in ("train", "dev", "test"):
        rows = [
            {"text": f"{text} {word}", "label_name": label, "profile": author}
            for author in AUTHORS
            for label, text in words.items()
            for word in ("three", "four")
        ]
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    backbone = small.bert(tmp_path / "bert", attention_probs_dropout_prob=0.0)
    return SharedSettings(
        tmp_path, tmp_path / "out", backbone=backbone, epochs=1, precision="32-true"
    )


def _before_and_after(name: str, shared: SharedSettings) -> tuple[Model, Model]:
    setup = replace(SETUPS[name], method=replace(SETUPS[name].method, bottleneck=4))
    still = replace(setup, lr=0.0, method_lr=0.0)
    return fit(still, shared, seed=1), fit(setup, shared, seed=1)


@pytest.mark.slow
def test_the_control_trains_everything_except_the_masks(shared: SharedSettings) -> None:
    before, after = _before_and_after("random-100", shared)
    for old, new in zip(masks_of(before).logits, masks_of(after).logits, strict=True):
        assert torch.equal(old, new)
    for old, new in zip(masks_of(before).norms, masks_of(after).norms, strict=True):
        assert not torch.equal(old, new)
    old_head, new_head = before.head_weights(), after.head_weights()
    assert not torch.equal(old_head["classifier.weight"], new_head["classifier.weight"])


@pytest.mark.slow
def test_masks_are_trained_outside_the_control(shared: SharedSettings) -> None:
    before, after = _before_and_after("hard-100", shared)
    for old, new in zip(masks_of(before).logits, masks_of(after).logits, strict=True):
        assert not torch.equal(old, new)


def test_each_row_uses_and_trains_the_adapter_of_its_author_only(shared: SharedSettings) -> None:
    data = shared.data()
    setup = replace(SETUPS["adapter-each"], method=AdapterPerProfile(bottleneck=2))
    model = fit(setup, shared, seed=0).eval()
    site = next(module for module in model.modules() if isinstance(module, ProfileAdapters))
    inputs = {"input_ids": torch.tensor([[3, 4, 1]]), "attention_mask": torch.ones(1, 3).long()}
    rows = {name: value.repeat(2, 1) for name, value in inputs.items()}
    mixed = model(**rows, profile=torch.tensor([2, 0])).logits
    alone = [model(**inputs, profile=torch.tensor([n])).logits[0] for n in (2, 0)]
    torch.testing.assert_close(mixed, torch.stack(alone))
    mixed.sum().backward()
    assert len(data.profiles) == len(site.A) == 3
    assert [weight.grad is None for weight in site.A] == [False, True, False]


@pytest.mark.slow
def test_the_adapter_of_an_author_is_an_ordinary_adapter(shared: SharedSettings) -> None:
    model = fit(SETUPS["adapter-each"], shared, seed=0)
    site = next(module for module in model.modules() if isinstance(module, ProfileAdapters))
    f, h = torch.randn(2, 1, 4, 16)
    masks_of(model).selected.set(masks_of(model).select(torch.tensor([1])))
    up, bias = site.B[1][:-1], site.B[1][-1]
    expected = f + torch.relu(h @ site.A[1] + site.c[1]) @ up + bias
    torch.testing.assert_close(site(f, h), expected)
    bank = bank_of(model)
    torch.testing.assert_close(bank.A[0, 1].view(16, -1), site.A[1].detach())
    torch.testing.assert_close(bank.B[0, 1].view(-1, 16), up.detach())


@pytest.mark.slow
def test_every_setup_runs_and_a_second_call_trains_nothing(
    shared: SharedSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(shared.folder), "--out", str(shared.out), "--seeds", "0"]
    given += ["--backbone", shared.backbone, "--epochs", "1", "--precision", "32-true"]
    bank = replace(SETUPS["hard-trained"].method, k=2)  # there are three authors, not 28
    small_bank = replace(SETUPS["hard-trained"], method=bank)
    monkeypatch.setitem(SETUPS, "hard-trained", small_bank)
    printed = authors.main(given)
    assert [line.split("|")[1].strip() for line in printed.splitlines()[2:]] == [*SETUPS]
    monkeypatch.setattr(authors, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert authors.main(given) == printed
    capsys.readouterr()


@pytest.mark.slow
def test_other_settings_are_another_run(shared: SharedSettings) -> None:
    first = authors.Runs(shared).result("head", 0)
    second = authors.Runs(replace(shared, epochs=2)).result("head", 0)
    assert first["settings"] != second["settings"]


def test_accuracy_over_rows_and_over_authors() -> None:
    counts = {"Ann": (1, 2), "Bob": (8, 8)}
    assert authors.micro(counts) == 90.0
    assert authors.macro(counts) == 75.0


def test_a_row_of_the_table_has_mean_and_deviation_over_seeds() -> None:
    sizes = {"shared": 4620, "own": 1200, "bytes": 156}
    seeds = [{**sizes, "dev": {"Ann": (n, 4)}, "test": {"Ann": (n, 4)}} for n in (1, 3)]
    # 25 and 75: the mean is 50, the deviation 25 times the root of 2.
    expected = ("masks", "4,620", "1,200", "156", "50.0", "50.0 ± 35.4", "50.0 ± 35.4", "2")
    assert authors.row("masks", seeds) == expected


def test_an_unknown_setup_raises_with_the_nearest_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        authors.main(["--data", ".", "--only", "hard-10"])
    assert "did you mean 'hard-100'" in capsys.readouterr().err
