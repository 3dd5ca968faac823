"""What a folder is, and which loader opens it."""

from __future__ import annotations

import json

import pytest
from zoo import build

from lightning_pelt import LoRA, Plan, attach, save_adapters
from lightning_pelt.exchange.peft import save_peft
from lightning_pelt.utils.formats import (
    ADAPTERHUB,
    FORMATS,
    OURS,
    PEFT,
    TRANSFORMERS,
    expect_format,
    format_of,
)


@pytest.fixture
def folders(tmp_path):
    """A folder in each format, written by the libraries or as they write it."""
    base = build("bert")
    base.save_pretrained(tmp_path / "transformers")
    attach(base, Plan.uniform(LoRA(r=2)))
    save_adapters(base, tmp_path / "lightning_pelt")
    save_peft(base, tmp_path / "peft")
    adapter = tmp_path / "adapterhub"
    adapter.mkdir()
    config = {"config": {"reduction_factor": 16}, "model_type": "bert", "name": "a", "version": "1"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "pytorch_adapter.bin").touch()
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "meta.pt").touch()
    return tmp_path


def test_each_format_is_known_and_no_other_loader_takes_it(folders):
    for found in FORMATS:
        assert format_of(folders / found.name) == found
        assert expect_format(folders / found.name, found) == folders / found.name
        for wanted in FORMATS:
            if wanted != found:
                with pytest.raises(ValueError, match="load it with") as raised:
                    expect_format(folders / found.name, wanted)
                assert f"is {found.what}, not {wanted.what}" in str(raised.value)
                assert str(raised.value).endswith(found.loader)


@pytest.mark.parametrize("name", [OURS.name, PEFT.name, ADAPTERHUB.name])
def test_the_configuration_alone_tells(folders, name):
    config = (folders / name / "adapter_config.json").read_bytes()
    alone = folders / "alone"
    alone.mkdir()
    (alone / "adapter_config.json").write_bytes(config)
    found = format_of(alone)
    assert found is not None and found.name == name


def test_an_adapter_of_ours_saved_by_save_pretrained_is_no_whole_model(tmp_path):
    model = build("bert")
    attach(model, Plan.uniform(LoRA(r=2)))
    with pytest.warns(UserWarning, match="without the base"):
        model.save_pretrained(tmp_path)
    assert format_of(tmp_path) == OURS


def test_what_is_no_folder_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder nowhere.*snapshot_download"):
        expect_format("nowhere", PEFT)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ValueError, match="is a file: give the folder"):
        expect_format(tmp_path / "adapter_model.safetensors", PEFT)


def test_a_folder_of_another_kind_names_what_it_holds(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds such folders.*peft"):
        expect_format(folders, PEFT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="it is empty"):
        expect_format(tmp_path / "empty", PEFT)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no other format that is known.*notes\.txt"):
        expect_format(tmp_path / "other", TRANSFORMERS)


def test_a_damaged_configuration_is_no_format(tmp_path):
    (tmp_path / "adapter_config.json").write_text("[1, 2")
    assert format_of(tmp_path) is None
