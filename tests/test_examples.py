"""Each script of the gallery runs in a process, draws its picture, and prints what it has found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.image import imread
from scripts import output_of_file

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "docs" / "examples").glob("*.py"))
PRINTED = {
    "accuracy_by_parameters": r"LoRA +\d+,\d+ parameters +\d+\.\d%\n(.*\n)*BitFit +\d",
    "gates_over_time": r"lowest gate at the end: 0\d/(lora\.(query|value)|prefix|adapter)\n",
    "masks_of_profiles": r"readers 1 and 2 share \d+\.\d of 10 adapters a mask; chance is 2\.5\n",
    "plan_of_s4": r"encoder +5 +4 .*\n(.*\n)*total +[\d,]+ +[\d,]+ +[\d,]+ +[\d,]+ +111,032",
    "schedule": r"pruned: (none|0\d/\S+)",
}


def test_the_gallery_has_every_script_and_picture() -> None:
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert {script.stem for script in SCRIPTS} == PRINTED.keys()
    for name in PRINTED:
        assert f"](examples/{name}.py)" in page
        assert f"](pictures/gallery/{name}.png)" in page
        assert (ROOT / f"docs/pictures/gallery/{name}.png").stat().st_size < 120_000


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_short(script: Path) -> None:
    assert len(script.read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_draws_its_picture(script: Path, tmp_path: Path) -> None:
    status, output = output_of_file(script, "--out", str(tmp_path))
    assert status == 0, output[-5000:]
    assert re.search(PRINTED[script.stem], output), output[-2000:]
    file = tmp_path / f"{script.stem}.png"
    assert f"picture: {file}" in output
    picture = imread(file)[..., :3]
    assert min(picture.shape[:2]) > 300
    assert len(set(map(tuple, picture[::7, ::7].reshape(-1, 3).round(2).tolist()))) > 5, "empty"
