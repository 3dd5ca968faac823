"""Model cards: what they say of adapters, and what they keep of people's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exchange.small_base import PLAN, classifier, logits, save_base
from huggingface_hub import ModelCard

from lightning_pelt import XPEFT, LoRA, Plan, RandomBank, UniPELT, attach
from lightning_pelt.attach import Attachment, attachment_of
from lightning_pelt.exchange.card_section import marked, put_section
from lightning_pelt.exchange.card_text import public_base
from lightning_pelt.exchange.model_card import model_card
from lightning_pelt.plans import from_config
from lightning_pelt.testing import tiny_bert


@pytest.fixture(scope="module")
def attachment(tmp_path_factory: pytest.TempPathFactory) -> Attachment:
    base = save_base(tmp_path_factory.mktemp("base"))
    model = classifier(base, UniPELT())
    model.config.name_or_path = "them/base"  # as if it came from the hub
    found = attachment_of(model)
    found.recorded["name"], found.recorded["revision"] = "them/base", "a" * 40
    logits(model)
    return found


def card(attachment: Attachment, **options: Any) -> ModelCard:
    """A card that was read again, as the hub does."""
    return ModelCard(str(model_card(attachment, "me/mine", **options)))


def test_the_metadata_are_those_of_the_hub(attachment: Attachment) -> None:
    data = card(attachment, metrics={"test/accuracy": 0.875}, dataset="nyu-mll/glue").data
    assert data.library_name == "lightning_pelt"
    assert data.base_model == "them/base"
    assert data.base_model_relation == "adapter"
    assert data.pipeline_tag == "text-classification"
    assert data.tags == ["lightning_pelt", "adapter", "prefix", "lora"]
    assert data.metrics == ["accuracy"]
    (result,) = data.eval_results
    assert (result.metric_value, result.dataset_type) == (0.875, "nyu-mll/glue")
    assert "model-index" in data.to_dict()


def test_without_a_data_set_the_metrics_are_in_the_text_alone(attachment: Attachment) -> None:
    found = card(attachment, metrics={"f1": torch.tensor(0.25), "loss": 3})
    assert found.data.eval_results is None
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.text.splitlines()]
    assert ["f1", "0.25"] in rows and ["loss", "3"] in rows


def test_the_counts_are_those_of_the_attachment(attachment: Attachment) -> None:
    text = card(attachment).text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    for name, count in attachment.counts.items():
        assert [name, f"{count.trained:,}", f"{count.deployed:,}", f"{count.gates:,}"] in rows
    assert ["head", f"{attachment.head_size:,}", f"{attachment.head_size:,}", "0"] in rows
    assert f"{attachment.backbone_size:,} parameters and is frozen" in text


def test_the_plan_can_be_copied(attachment: Attachment) -> None:
    text = card(attachment).text
    written = text.split("```yaml\n")[1].split("\n```")[0]
    assert from_config(yaml.safe_load(written)) == attachment.plan


def test_the_gates_are_those_of_the_last_batch(attachment: Attachment) -> None:
    logits(attachment.model)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in card(attachment).text.splitlines()
    ]
    header = next(row for row in rows if row[:1] == ["block"])
    for name, view in attachment.gates.items():
        block, site = name.split("/")
        row = next(row for row in rows if row[:1] == [block])
        assert view.value is not None
        assert row[header.index(site)] == f"{float(view.value.mean()):.2f}"


def test_gates_that_saw_nothing_have_no_numbers() -> None:
    found = attach(tiny_bert(), UniPELT())
    assert "8 gates decide" in card(found).text
    assert "Gates" not in card(attach(tiny_bert(), PLAN)).text
    assert "](gates.png)" in card(found, picture=True).text


def test_how_to_load(attachment: Attachment) -> None:
    assert 'predictor = load_pelt("me/mine")' in card(attachment).text
    text = card(attachment, module="Mine").text
    assert "load_pelt" not in text and 'from_hub(model, "me/mine")' in text
    assert "from_hub(model" in card(attach(tiny_bert(), PLAN)).text  # the base has no name


def test_several_profiles_are_chosen_around_the_call(tmp_path: Path) -> None:
    base, bank = save_base(tmp_path / "base"), RandomBank(size=4)
    for profiles, wanted in ((1, False), (3, True)):
        plan = Plan.uniform(XPEFT(bank=bank, k=2, bottleneck=4, profiles=profiles))
        text = card(attachment_of(classifier(base, plan))).text
        assert ("    predictor(" in text and "import load_pelt, profiles_of" in text) == wanted


@pytest.mark.parametrize("name", ["./base", "/home/ann/base", "~/base", "a/b/c", "C:\\base", None])
def test_folders_are_no_bases_of_the_hub(name: str | None) -> None:
    assert public_base({"name": name}) is None


def test_a_folder_with_the_name_of_a_repository(tmp_path: Path) -> None:
    Path("them/base").mkdir(parents=True)
    assert public_base({"name": "them/base"}) is None


def test_labels_cannot_break_the_card() -> None:
    model = tiny_bert()
    model.config.id2label = {0: "a|b", 1: "<!-- lightning_pelt: end -->", 2: "x\ny"}
    text = card(attach(model, PLAN)).text
    assert text.count("<!-- lightning_pelt: end -->") == 1
    assert "a&#124;b, &lt;!-- lightning_pelt: end --&gt;, x y" in text


def test_a_new_card_in_the_place_of_the_old_one(attachment: Attachment) -> None:
    other = attach(tiny_bert(), Plan.uniform(LoRA(r=3)))
    before = str(model_card(attachment, "me/mine")) + "\nMy words.\n"
    now = card(other, before=before)
    assert "My words." in now.text and "r: 3" in now.text and "reduction_factor" not in now.text
    assert now.text.count("lightning_pelt: begin") == 1


class TestSection:
    def test_the_text_around_it_stays_as_it_is(self) -> None:
        card = f"Above.\n\n{marked('Old.')}\n\nBelow, \\1 and \\g<0>.\n"
        new = "New, \\1."
        assert put_section(card, new) == card.replace(marked("Old."), marked(new))

    def test_it_is_made_once(self) -> None:
        once = put_section("", "Text.")
        assert put_section(once, "Text.") == once

    @pytest.mark.parametrize("replace", [False, True])
    def test_two_sections_are_refused(self, replace: bool) -> None:
        with pytest.raises(ValueError, match="or several"):
            put_section(f"{marked('A')}\n{marked('B')}", "C", replace=replace)

    def test_an_edit_is_refused_unless_it_may_go(self) -> None:
        edited = marked("One.").replace("One.", "One. Two.")
        with pytest.raises(ValueError, match="somebody has edited"):
            put_section(edited, "Three.")
        assert "Two." not in put_section(edited, "Three.", replace=True)


def test_a_card_of_which_the_metadata_is_no_mapping(attachment: Attachment) -> None:
    with pytest.raises(ValueError, match="metadata"):
        model_card(attachment, "me/mine", before="---\n- a\n- b\n---\nText\n")
