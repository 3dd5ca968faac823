"""Images of folders, tables and data sets."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import media
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from lightning_pelt.data import LabelledImages


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return media.vit(tmp_path_factory.mktemp("vit"))


def data(vit: str, **options: Any) -> LabelledImages:
    return LabelledImages(vit, **{"dev_share": 0, "batch_size": 4, **options})


def batch(found: LabelledImages, split: str = "train") -> dict[str, torch.Tensor]:
    return found.collate()(found.examples(split)[:4])


def plain(path: Path, colour: tuple[int, int, int] = (255, 0, 0), size: Any = (16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_a_folder_for_each_class(vit: str, tmp_path: Path) -> None:
    found = data(vit, train=media.images(tmp_path / "train", count=3))
    assert found.labels == ["blue", "red"]
    made = batch(found)
    assert made["labels"].tolist() == [0, 0, 0, 1]
    assert made["pixel_values"].shape == (4, 3, 16, 16)


def test_pixels_are_those_of_the_formula(vit: str, tmp_path: Path) -> None:
    """The processor rescales to [0, 1] and normalises with mean and deviation 0.5."""
    plain(tmp_path / "a" / "1.png", (255, 0, 51))
    plain(tmp_path / "b" / "1.png")
    pixels = batch(data(vit, train=str(tmp_path)))["pixel_values"][0]
    expected = torch.tensor([1.0, -1.0, 2 * 51 / 255 - 1])[:, None, None].expand(3, 16, 16)
    torch.testing.assert_close(pixels, expected)


def test_a_table_with_paths_beside_it(vit: str, tmp_path: Path) -> None:
    plain(tmp_path / "images" / "x.png")
    rows = [{"path": "images/x.png", "kind": "dog"}, {"path": "images/x.png", "kind": "cat"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = data(vit, train=str(tmp_path / "rows.jsonl"), file="path", label="kind")
    assert found.labels == ["cat", "dog"]
    assert batch(found)["labels"].tolist() == [1, 0]


def test_a_saved_data_set_with_images(vit: str, tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), (0, 255, 0)).save(content, "PNG")
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    image = {"bytes": content.getvalue(), "path": None}
    rows = Dataset.from_dict({"image": [image, image], "label": [1, 0]}, features=features)
    rows.save_to_disk(tmp_path / "saved")
    made = batch(data(vit, train=str(tmp_path / "saved"), file="image"))
    assert made["labels"].tolist() == [1, 0]
    assert made["pixel_values"][0, :, 0, 0].tolist() == [-1, 1, -1]


def test_images_are_upright_and_rgb(vit: str, tmp_path: Path) -> None:
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8] = 255  # grey, white on top
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png", exif=exif)
    plain(tmp_path / "b" / "1.png")
    made = batch(data(vit, train=str(tmp_path)))["pixel_values"][0]
    assert made[:, 0].unique().tolist() == [-1]
    assert made[:, 15].unique().tolist() == [1]


def test_rows_to_predict_are_a_flat_folder(vit: str, tmp_path: Path) -> None:
    train = media.images(tmp_path / "train", count=2)
    plain(tmp_path / "new" / "2.png")
    plain(tmp_path / "new" / "1.png")
    found = data(vit, train=train, predict=str(tmp_path / "new"))
    assert [row["path"][-5:] for row in found.examples("predict")["file"]] == ["1.png", "2.png"]
    assert list(batch(found, "predict")) == ["pixel_values"]


def test_processes_of_a_loader_make_the_batches(vit: str, tmp_path: Path) -> None:
    found = data(vit, train=media.images(tmp_path / "train", count=3))
    loader = DataLoader(
        found.examples("train"),  # type: ignore[arg-type]
        batch_size=4,
        collate_fn=found.collate(),
        num_workers=1,
        multiprocessing_context="fork",
    )
    made = next(iter(loader))
    torch.testing.assert_close(made["pixel_values"], batch(found)["pixel_values"])


class TestFaults:
    def test_a_damaged_image_is_named_with_its_batch(self, vit: str, tmp_path: Path) -> None:
        train = media.images(tmp_path / "train", count=2)
        (tmp_path / "train" / "blue" / "0.png").write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"blue/0\.png cannot be decoded: .*identify"):
            batch(data(vit, train=train))

    def test_an_image_of_more_pixels_than_are_read(self, vit: str, tmp_path: Path) -> None:
        """Its header states them; the file has one row of them."""
        path = tmp_path / "train" / "a" / "1.bmp"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 1)).save(path)
        content = bytearray(path.read_bytes())
        content[18:26] = (9_000).to_bytes(4, "little") * 2
        path.write_bytes(content)
        data = LabelledImages(vit, train=str(tmp_path / "train"), dev_share=0)
        with pytest.raises(ValueError, match=r"1\.bmp cannot .*9000 x 9000 pixels, and 64,000,000"):
            data.collate()(data.examples("train")[:1])

    def test_a_missing_file_is_named_with_its_row(self, vit: str, tmp_path: Path) -> None:
        plain(tmp_path / "dog1.png")
        (tmp_path / "rows.csv").write_text("file,label\ndog1.png,a\ndog2.png,b\n")
        with pytest.raises(
            ValueError,
            match=r"rows\.csv, row 2, column 'file': there is no file .*"
            r"dog2\.png: did you mean dog1\.png\?",
        ):
            data(vit, train=str(tmp_path / "rows.csv")).rows("train")

    def test_an_image_outside_the_classes(self, vit: str, tmp_path: Path) -> None:
        train = media.images(tmp_path / "train", count=1)
        plain(tmp_path / "train" / "x.png")
        with pytest.raises(ValueError, match=r"x\.png lies in no folder of a class: expected"):
            data(vit, train=train).rows("train")

    def test_other_files_are_counted(self, vit: str, tmp_path: Path) -> None:
        train = media.images(tmp_path / "train", count=1)
        (tmp_path / "train" / "blue" / "notes.txt").write_text("")
        (tmp_path / "train" / ".hidden.png").write_text("")
        with pytest.warns(UserWarning, match=r"1 files do not end in .*notes\.txt"):
            assert len(data(vit, train=train).rows("train")) == 2

    def test_a_folder_without_images(self, vit: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"has no files that end in \.bmp"):
            data(vit, train=str(tmp_path)).rows("train")

    def test_a_backbone_of_texts(self, tmp_path: Path) -> None:
        train = media.images(tmp_path / "train", count=1)
        found = data("sentence-transformers/all-MiniLM-L6-v2", train=train)
        with pytest.raises(OSError, match="has no processor of images"):
            batch(found)

    def test_a_class_that_train_lacks(self, vit: str, tmp_path: Path) -> None:
        train = media.images(tmp_path / "train", count=1)
        plain(tmp_path / "test" / "bleu" / "1.png")
        found = data(vit, train=train, test=str(tmp_path / "test"))
        with pytest.raises(ValueError, match="unknown label 'bleu': did you mean 'blue'"):
            found.rows("test")
