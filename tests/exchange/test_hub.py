"""Adapters on the hub: a fake one on this machine, which huggingface_hub cannot tell from it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from exchange.fake_hub import READER, FakeHub, fake_hub
from exchange.small_base import (
    LABELS,
    WORDS,
    classifier,
    gated,
    logits,
    save_base,
    save_tokenizer,
)
from huggingface_hub import ModelCard, constants
from matplotlib.image import imread
from safetensors.torch import load, load_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from lightning_pelt import load_adapters, save_adapters
from lightning_pelt.attach import find_attachment
from lightning_pelt.attach.saving import PushToHub
from lightning_pelt.exchange.hub import from_hub, push_to_hub
from lightning_pelt.exchange.loading import load_pelt
from lightning_pelt.reports.figures import gate_heatmap

REPO = "me/adapters"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """Has a base, them/base."""
    with fake_hub(monkeypatch, tmp_path / "cache") as found:
        found.put("them/base", save_base(tmp_path / "base"))
        yield found


@pytest.fixture
def model(hub: FakeHub) -> Any:
    return classifier("them/base")


def fresh(base: Path | str = "them/base") -> Any:
    return AutoModelForSequenceClassification.from_pretrained(
        str(base), id2label=dict(enumerate(LABELS))
    ).eval()


def card(hub: FakeHub, revision: str = "main") -> str:
    return hub.repos[REPO].files(revision)["README.md"].decode()


class TestPush:
    @pytest.mark.slow
    def test_a_colleague_loads_what_was_pushed_in_one_line(self, hub: FakeHub, model: Any) -> None:
        url = push_to_hub(model, REPO, metrics={"accuracy": 0.9})
        assert url == f"{hub.endpoint}/{REPO}"
        files = hub.repos[REPO].files()
        assert files.keys() == {
            *(".gitattributes", "README.md", "adapters.safetensors", "adapter_config.json")
        }
        predictor = load_pelt(REPO)
        assert torch.equal(logits(predictor.model), logits(model))
        assert predictor.labels == LABELS
        assert predictor("the cat sat")[0]["label"] in LABELS
        other = fresh()
        assert from_hub(other, REPO) is find_attachment(other)
        assert torch.equal(logits(other), logits(model))

    @pytest.mark.slow
    def test_all_files_come_in_one_commit(self, hub: FakeHub, model: Any) -> None:
        push_to_hub(model, REPO, message="First try")
        assert hub.repos[REPO].messages == ["initial commit", "First try"]
        push_to_hub(model, REPO)
        assert hub.repos[REPO].messages[2:] == ["Upload adapters"]

    @pytest.mark.slow
    def test_a_branch_is_made_and_the_others_stay(self, hub: FakeHub, model: Any) -> None:
        push_to_hub(model, REPO)
        before = hub.repos[REPO].files()
        trained = classifier("them/base")
        for parameter in find_attachment(trained).parameters_of("lora"):  # type: ignore[union-attr]
            parameter.data.mul_(2)
        url = push_to_hub(trained, REPO, revision="v2")
        assert url.endswith("/tree/v2")
        assert hub.repos[REPO].files() == before
        assert torch.equal(logits(load_pelt(REPO, revision="v2").model), logits(trained))
        assert torch.equal(logits(load_pelt(REPO).model), logits(model))

    @pytest.mark.slow
    def test_a_private_repository_asks_for_the_token(
        self, hub: FakeHub, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        push_to_hub(model, REPO, private=True)
        assert hub.repos[REPO].private
        with pytest.raises(OSError, match=f"no repository {REPO} on the hub, or it is private"):
            from_hub(fresh(), REPO, token=READER)
        assert from_hub(fresh(), REPO)

    @pytest.mark.slow
    def test_a_pull_request_leaves_the_branch(self, hub: FakeHub, model: Any) -> None:
        push_to_hub(model, REPO)
        before = hub.repos[REPO].files()
        url = push_to_hub(gated("them/base"), REPO, create_pr=True)
        assert url.endswith(f"{REPO}/discussions/1")
        assert hub.repos[REPO].files() == before

    @pytest.mark.slow
    def test_the_name_of_the_user_may_be_left_out(self, hub: FakeHub, model: Any) -> None:
        push_to_hub(model, "adapters")
        assert 'load_pelt("me/adapters")' in card(hub)

    @pytest.mark.slow
    def test_a_module_with_its_own_head_is_pushed_with_the_way_to_load_it(
        self, hub: FakeHub, model: Any
    ) -> None:
        class Mine(nn.Module):
            def __init__(self, model: Any) -> None:
                super().__init__()
                self.model, self.own = model, nn.Linear(3, 2)

        module = Mine(model)
        push_to_hub(module, REPO)
        assert "model = Mine(...)" in card(hub) and "load_pelt" not in card(hub)
        other = Mine(fresh())
        from_hub(other, REPO)
        assert torch.equal(other.own.weight, module.own.weight)
        with pytest.raises(ValueError, match=r"own.bias .*load_adapters\(module, folder\)"):
            load_pelt(REPO)

    @pytest.mark.slow
    def test_save_pretrained_pushes_too(self, hub: FakeHub, model: Any, tmp_path: Path) -> None:
        with pytest.warns(UserWarning, match="writes the adapters"):
            model.save_pretrained(tmp_path / "adapters", push_to_hub=True, private=True)
        assert hub.repos[REPO].private
        assert torch.equal(logits(load_pelt(REPO).model), logits(model))
        assert "model.safetensors" not in hub.repos[REPO].files()  # would be taken for a model

    @pytest.mark.slow
    def test_push_to_hub_of_the_model_does_the_same(self, hub: FakeHub, model: Any) -> None:
        url = PushToHub(model)(REPO, commit_message="Mine", revision="v1", tags=["x"])
        assert url.endswith("/tree/v1") and hub.repos[REPO].messages[-1] == "Mine"
        assert torch.equal(logits(load_pelt(REPO, revision="v1").model), logits(model))

    @pytest.mark.slow
    def test_a_base_of_a_folder_is_named_in_a_warning(self, hub: FakeHub, tmp_path: Path) -> None:
        local = classifier(tmp_path / "base")
        with pytest.warns(UserWarning, match=r"from the folder .*base.*load_pelt\(repo, backbone="):
            push_to_hub(local, REPO)
        assert "base_model" not in card(hub)
        moved = save_base(tmp_path / "elsewhere")
        assert torch.equal(logits(load_pelt(REPO, backbone=str(moved)).model), logits(local))


class TestPicture:
    @pytest.mark.slow
    def test_a_figure_or_a_file_is_in_the_card(self, hub: FakeHub, tmp_path: Path) -> None:
        model = gated("them/base")
        figure = gate_heatmap({"00/lora.query": 0.3, "01/lora.query": 0.8})
        push_to_hub(model, REPO, picture=figure)
        drawn = hub.repos[REPO].files()["gates.png"]
        assert drawn.startswith(b"\x89PNG") and "](gates.png)" in card(hub)
        (tmp_path / "mine.png").write_bytes(drawn)
        push_to_hub(model, REPO, picture=tmp_path / "mine.png", revision="file")
        assert hub.repos[REPO].files("file")["gates.png"] == drawn

    @pytest.mark.slow
    def test_the_gates_are_drawn_by_default(self, hub: FakeHub, model: Any) -> None:
        push_to_hub(model, REPO)  # without gates
        assert "gates.png" not in hub.repos[REPO].files()
        tuned = gated("them/base")
        push_to_hub(tuned, REPO)
        means = {
            name: float(view.value.mean()) for name, view in tuned.pelt_attachment.gates.items()
        }
        gate_heatmap(means, "Mean gate in the last batch").savefig("own.png", dpi=150)
        drawn = [
            imread(BytesIO(content))
            for content in (hub.repos[REPO].files()["gates.png"], Path("own.png").read_bytes())
        ]
        assert (drawn[0] == drawn[1]).all() and drawn[0].std() > 0
        assert "](gates.png)" in card(hub)

    @pytest.mark.slow
    def test_the_picture_of_other_weights_goes(self, hub: FakeHub) -> None:
        model = gated("them/base")
        push_to_hub(model, REPO, picture=gate_heatmap({"00/lora.query": 0.3}))
        push_to_hub(model, REPO, picture=False)
        assert "gates.png" not in hub.repos[REPO].files()
        assert "gates.png" not in card(hub) and "| 00 " in card(hub)

    @pytest.mark.parametrize("picture", ["no.jpg", 3])
    def test_no_picture_is_refused(self, hub: FakeHub, model: Any, picture: Any) -> None:
        Path("no.jpg").write_bytes(b"\xff\xd8\xff\xe0")
        with pytest.raises(ValueError, match="picture"):
            push_to_hub(model, REPO, picture=picture)
        assert REPO not in hub.repos


class TestCardOnTheHub:
    @pytest.mark.slow
    def test_what_people_wrote_is_kept(self, hub: FakeHub, model: Any) -> None:
        push_to_hub(model, REPO, metrics={"accuracy": 0.5})
        mine = card(hub).replace("---\n\n#", "license: mit\n---\n\n#", 1) + "\nThanks to Ann.\n"
        hub.put(REPO, {"README.md": mine})
        push_to_hub(model, REPO, metrics={"accuracy": 0.75})
        now = card(hub)
        assert "Thanks to Ann." in now and ModelCard(now).data.license == "mit"
        assert "0.75" in now and "0.5 |" not in now and now.count("## Plan") == 1
        assert ModelCard(now).data.tags == ["lightning_pelt", "lora"]

    @pytest.mark.slow
    def test_a_card_without_marks_is_continued(self, hub: FakeHub, model: Any) -> None:
        hub.put(REPO, {"README.md": "---\nlicense: mit\ntags: [mine]\n---\n# My card\n\nWords.\n"})
        push_to_hub(model, REPO)
        now = card(hub)
        assert now.index("Words.") < now.index("lightning_pelt: begin")
        assert ModelCard(now).data.tags == ["mine", "lightning_pelt", "lora"]
        assert ModelCard(now).data.library_name == "lightning_pelt"

    @pytest.mark.slow
    def test_an_edited_section_is_not_replaced_silently(self, hub: FakeHub, model: Any) -> None:
        push_to_hub(model, REPO)
        hub.put(REPO, {"README.md": card(hub).replace("## Plan", "Use with care.\n\n## Plan")})
        before = hub.repos[REPO].files()
        with pytest.raises(ValueError, match=r"edited the generated section.*replace_card=True"):
            push_to_hub(model, REPO)
        assert hub.repos[REPO].files() == before
        push_to_hub(model, REPO, replace_card=True)
        assert "Use with care." not in card(hub)

    @pytest.mark.slow
    def test_windows_line_ends_are_no_edit(self, hub: FakeHub, model: Any) -> None:
        push_to_hub(model, REPO)
        hub.put(REPO, {"README.md": card(hub).replace("\n", "\r\n")})
        push_to_hub(model, REPO)
        assert card(hub).count("lightning_pelt: begin") == 1

    @pytest.mark.slow
    def test_a_mark_without_its_end_is_refused(self, hub: FakeHub, model: Any) -> None:
        push_to_hub(model, REPO)
        broken = card(hub).replace("<!-- lightning_pelt: end -->", "")
        hub.put(REPO, {"README.md": broken})
        with pytest.raises(ValueError, match="begin` without its end"):
            push_to_hub(model, REPO)


class TestTokenizer:
    @pytest.mark.slow
    def test_it_goes_with_the_adapters_if_it_is_given(
        self, hub: FakeHub, model: Any, tmp_path: Path
    ) -> None:
        tokenizer = save_tokenizer(tmp_path / "own", [*WORDS[:5], "mat", *WORDS[6:]])
        push_to_hub(model, REPO, tokenizer=tokenizer)
        found = load_pelt(REPO).tokenizer
        assert found is not None and found.get_vocab() == tokenizer.get_vocab()

    @pytest.mark.slow
    def test_one_from_before_is_named(self, hub: FakeHub, model: Any, tmp_path: Path) -> None:
        push_to_hub(model, REPO, tokenizer=save_tokenizer(tmp_path / "own"))
        with pytest.warns(UserWarning, match=r"holds a tokenizer from before .*tokenizer="):
            push_to_hub(model, REPO)


class TestErrorsOfPush:
    def test_without_adapters_nothing_is_created(self, hub: FakeHub) -> None:
        model = fresh()
        with pytest.raises(ValueError, match="nothing is attached"):
            push_to_hub(model, REPO)
        assert REPO not in hub.repos

    @pytest.mark.parametrize("value", [float("nan"), "good", torch.ones(2)])
    def test_a_metric_that_is_no_number(self, hub: FakeHub, model: Any, value: Any) -> None:
        with pytest.raises(ValueError, match=r"metric 'f1' is .*expected a finite number"):
            push_to_hub(model, REPO, metrics={"f1": value})
        assert REPO not in hub.repos

    @pytest.mark.parametrize("file", ["adapter_model.safetensors", "model.safetensors"])
    def test_a_repository_of_another_format(self, hub: FakeHub, model: Any, file: str) -> None:
        before = hub.put(REPO, {file: b"theirs"}).files()
        with pytest.raises(ValueError, match=f"{REPO} on the hub holds {file}.*new repository"):
            push_to_hub(model, REPO)
        assert hub.repos[REPO].files() == before

    @pytest.mark.parametrize(
        ("token", "message"),
        [("wrong", "did not accept the token: .*hf auth login"), (READER, "may not write")],
    )
    def test_a_token_without_the_right(
        self, hub: FakeHub, model: Any, token: str, message: str
    ) -> None:
        with pytest.raises(PermissionError, match=message):
            push_to_hub(model, REPO, token=token)

    def test_a_hub_that_is_switched_off(
        self, hub: FakeHub, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(OSError, match=r"switched off \(HF_HUB_OFFLINE\)"):
            push_to_hub(model, REPO)

    def test_a_hub_that_cannot_be_reached(
        self, hub: FakeHub, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(OSError, match=f"{REPO}: the hub cannot be reached"):
            push_to_hub(model, REPO)

    @pytest.mark.parametrize("step", ["PUT /lfs", "POST .*/commit/", "POST .*/preupload/"])
    @pytest.mark.slow
    def test_an_upload_that_fails_leaves_the_old_files(
        self, hub: FakeHub, model: Any, step: str
    ) -> None:
        push_to_hub(model, REPO)
        before = hub.repos[REPO].files()
        hub.fail = step
        with pytest.raises(OSError, match="the hub answered 400"):
            push_to_hub(gated("them/base"), REPO)
        assert hub.repos[REPO].files() == before
        hub.fail = ""
        push_to_hub(gated("them/base"), REPO)
        assert hub.repos[REPO].files() != before

    @pytest.mark.slow
    def test_somebody_else_pushes_at_the_same_time(self, hub: FakeHub, model: Any) -> None:
        push_to_hub(model, REPO)
        hub.race = True
        with pytest.raises(OSError, match=r"has changed since it was read.*try again"):
            push_to_hub(gated("them/base"), REPO)
        assert load(hub.repos[REPO].files()["adapters.safetensors"]).keys()
        assert torch.equal(logits(load_pelt(REPO).model), logits(model))


class TestFromHub:
    @pytest.mark.slow
    def test_it_downloads_no_other_files(self, hub: FakeHub, model: Any) -> None:
        push_to_hub(model, REPO)
        hub.put(REPO, {"pytorch_model.bin": b"cos\nsystem", "big.safetensors": b"0", "a.py": b""})
        other = fresh()
        hub.downloads.clear()
        from_hub(other, REPO)
        assert sorted(hub.downloads) == ["adapter_config.json", "adapters.safetensors"]

    @pytest.mark.parametrize(
        ("repo", "revision", "message"),
        [
            ("me/nothing", None, "no repository me/nothing on the hub, or it is private"),
            (REPO, "v9", f"{REPO} has no branch, tag or commit 'v9'"),
            ("them/base", None, "them/base on the hub has no adapters.safetensors"),
        ],
    )
    @pytest.mark.slow
    def test_what_is_not_there(
        self, hub: FakeHub, model: Any, repo: str, revision: str | None, message: str
    ) -> None:
        push_to_hub(model, REPO)
        other = fresh()
        with pytest.raises(OSError, match=message):
            from_hub(other, repo, revision=revision)
        assert find_attachment(other) is None

    def test_another_format_names_its_loader(self, hub: FakeHub) -> None:
        hub.put(
            "me/peft",
            {"adapter_config.json": '{"peft_type": "LORA"}', "adapter_model.safetensors": b""},
        )
        with pytest.raises(OSError, match=r"PEFT's format.*load_peft\(model, folder\)"):
            from_hub(fresh(), "me/peft")

    @pytest.mark.slow
    def test_offline_the_cache_serves(
        self, hub: FakeHub, model: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        push_to_hub(model, REPO)
        load_pelt(REPO)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert torch.equal(logits(load_pelt(REPO).model), logits(model))
        with pytest.raises(OSError, match="me/other: the hub is switched off"):
            from_hub(fresh(), "me/other")

    @pytest.mark.slow
    def test_a_damaged_file_leaves_the_model_as_it_was(self, hub: FakeHub, model: Any) -> None:
        push_to_hub(model, REPO)
        content = hub.repos[REPO].files()["adapters.safetensors"]
        hub.put(REPO, {"adapters.safetensors": content[:-4] + b"\0\0\0\1"})
        other = fresh()
        before = logits(other)
        with pytest.raises(ValueError, match="damaged"):
            from_hub(other, REPO)
        assert find_attachment(other) is None
        assert torch.equal(logits(other), before)


@pytest.mark.slow
def test_the_uploaded_files_are_those_of_save_adapters(
    hub: FakeHub, model: Any, tmp_path: Path
) -> None:
    push_to_hub(model, REPO)
    folder = save_adapters(model, tmp_path / "own")
    files = hub.repos[REPO].files()
    assert files["adapter_config.json"] == (folder / "adapter_config.json").read_bytes()
    ours, theirs = load_file(folder / "adapters.safetensors"), load(files["adapters.safetensors"])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    load_adapters(fresh(), folder)


@pytest.mark.slow
def test_the_environment_names_the_hub(hub: FakeHub, model: Any, tmp_path: Path) -> None:
    """In a new process, where huggingface_hub reads HF_ENDPOINT itself."""
    push_to_hub(model, REPO)
    code = f"""
import torch
from lightning_pelt.exchange.hub import push_to_hub
from lightning_pelt.exchange.loading import load_pelt
push_to_hub(load_pelt({REPO!r}).model, "me/again")
"""
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(logits(load_pelt("me/again").model), logits(model))


@pytest.mark.slow
def test_the_base_is_loaded_at_the_commit_that_was_trained(hub: FakeHub, tmp_path: Path) -> None:
    model = gated("them/base")
    push_to_hub(model, REPO)
    commit = hub.repos["them/base"].branches["main"]
    assert commit in card(hub)
    hub.put("them/base", save_base(tmp_path / "new", seed=1))
    assert torch.equal(logits(load_pelt(REPO, strict=True).model), logits(model))


@pytest.mark.slow
def test_a_base_that_has_changed_is_noticed(hub: FakeHub, tmp_path: Path) -> None:
    fresh()
    hub.put("them/base", save_base(tmp_path / "new", seed=1))
    push_to_hub(gated("them/base"), REPO)  # the cache has two commits with other weights
    hub.put("them/base", save_base(tmp_path / "newer", seed=2))
    with pytest.raises(ValueError, match="trained on another backbone 'them/base'"):
        load_pelt(REPO, strict=True)
    with pytest.warns(UserWarning, match="trained on another backbone 'them/base'"):
        load_pelt(REPO)
