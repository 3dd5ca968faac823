"""``load_pelt``: everything that predicts, from one folder."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import media
import pytest
import torch
from exchange.small_base import (
    LABELS,
    PLAN,
    SMALL,
    WORDS,
    classifier,
    generator,
    logits,
    save_base,
    save_decoder,
    save_tokenizer,
    tuned,
)
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    WhisperTokenizer,
    pipeline,
)

from lightning_pelt import (
    XPEFT,
    FullFineTuning,
    HeadOnly,
    LoRA,
    Plan,
    Prompt,
    RandomBank,
    UniPELT,
    attach,
    detach,
    load_adapters,
    merge,
    profiles_of,
    save_adapters,
)
from lightning_pelt.exchange.loading import load_pelt
from lightning_pelt.testing import tiny_bert
from lightning_pelt.testing.models import draw
from lightning_pelt.utils.adapter_format import (
    CONFIG,
    TENSORS,
    WITHOUT_DIGESTS,
    read_adapters,
    write_adapters,
)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_base(tmp_path / "base")


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    return save_adapters(classifier(base), tmp_path / "adapters")


def change(folder: Path, **entries: Any) -> None:
    """Write the file again with other entries about the base; None removes one."""
    config, tensors = read_adapters(folder / TENSORS)
    backbone = {k: v for k, v in (config["backbone"] | entries).items() if v is not None}
    write_adapters(folder, tensors, plan=config["plan"], backbone=backbone)


class TestClassification:
    def test_one_line_gives_all_that_predicts(self, base: Path, tmp_path: Path) -> None:
        model = classifier(base)
        save_adapters(model, tmp_path / "a")
        predictor = load_pelt(str(tmp_path / "a"))
        assert torch.equal(logits(predictor.model), logits(model))
        assert predictor.labels == LABELS
        assert predictor.attachment.plan == PLAN
        assert not any(module.training for module in predictor.model.modules())
        assert predictor.tokenizer is not None
        ids = predictor.tokenizer("the cat sat", return_tensors="pt")
        with torch.no_grad():
            expected = model(**ids).logits.softmax(-1)[0]
        (found,) = predictor("the cat sat")
        assert found["label"] == LABELS[int(expected.argmax())]
        assert found["score"] == pytest.approx(float(expected.max()), abs=1e-6)

    def test_it_calls_the_pipeline_of_transformers(self, base: Path, folder: Path) -> None:
        predictor = load_pelt(folder)
        texts = ["the cat", {"text": "a dog", "text_pair": "ran fast"}]
        other = pipeline("text-classification", predictor.model, tokenizer=predictor.tokenizer)
        found = [predictor(text, top_k=None) for text in texts]
        assert found == [other(text, top_k=None) for text in texts]
        assert predictor(["the cat", "a dog"], batch_size=2) == other(["the cat", "a dog"])

    @pytest.mark.parametrize("plan", [UniPELT(), HeadOnly(), FullFineTuning()])
    def test_other_plans(self, base: Path, tmp_path: Path, plan: Any) -> None:
        model = classifier(base, plan)
        save_adapters(model, tmp_path / "a")
        assert torch.equal(logits(load_pelt(tmp_path / "a").model), logits(model))

    def test_folded_prefixes(self, base: Path, tmp_path: Path) -> None:
        model = classifier(base, UniPELT())
        save_adapters(model, tmp_path / "a", fold=True)
        found = logits(load_pelt(tmp_path / "a").model)
        torch.testing.assert_close(found, logits(model))

    def test_a_long_text_is_cut_where_the_positions_end(self, base: Path, tmp_path: Path) -> None:
        save_adapters(classifier(base, Plan.uniform(Prompt(length=4))), tmp_path / "a")
        predictor = load_pelt(tmp_path / "a")
        assert predictor.tokenizer is not None and predictor.tokenizer.model_max_length == 20
        long = "the cat " * 30
        assert predictor(long) == predictor(" ".join(long.split()[:18]))

    def test_a_head_of_another_size_in_the_base(self, tmp_path: Path) -> None:
        config = BertConfig(**SMALL)
        config.num_labels = 5
        draw(BertForSequenceClassification(config)).save_pretrained(tmp_path / "base")
        save_tokenizer(tmp_path / "base")
        model = classifier(tmp_path / "base", ignore_mismatched_sizes=True)
        save_adapters(model, tmp_path / "a")
        assert torch.equal(logits(load_pelt(tmp_path / "a").model), logits(model))

    def test_a_decoder_that_classifies_in_batches(self, tmp_path: Path) -> None:
        model = classifier(save_decoder(tmp_path / "base"), pad_token_id=0)
        save_adapters(model, tmp_path / "a")
        predictor = load_pelt(tmp_path / "a")
        texts = ["the cat", "a dog ran fast"]
        alone = [predictor(text)[0] for text in texts]
        together = predictor(texts, batch_size=2)
        assert [each["label"] for each in together] == [each["label"] for each in alone]
        assert together[0]["score"] == pytest.approx(alone[0]["score"], abs=1e-5)

    @pytest.mark.parametrize(
        ("kind", "function"),
        [
            ("regression", lambda x: x),
            ("multi_label_classification", torch.sigmoid),
        ],
    )
    def test_the_problem_type_decides_the_scores(
        self, base: Path, tmp_path: Path, kind: str, function: Any
    ) -> None:
        names = {"regression": {0: "score"}}.get(kind, dict(enumerate(LABELS)))
        model = classifier(base, problem_type=kind, id2label=names)
        save_adapters(model, tmp_path / "a")
        predictor = load_pelt(tmp_path / "a")
        assert predictor.tokenizer is not None
        with torch.no_grad():
            ids = predictor.tokenizer("the cat", return_tensors="pt")
            expected = {names[i]: float(v) for i, v in enumerate(function(model(**ids).logits[0]))}
        found = {each["label"]: each["score"] for each in predictor("the cat", top_k=None)}
        assert found == pytest.approx(expected, abs=1e-6)


class TestOtherKinds:
    def test_a_causal_model_generates(self, tmp_path: Path) -> None:
        model = generator(save_decoder(tmp_path / "base"))
        save_adapters(model, tmp_path / "a")
        predictor = load_pelt(tmp_path / "a")
        assert torch.equal(logits(predictor.model), logits(model))
        (found,) = predictor("the cat", max_new_tokens=3, do_sample=False)
        assert found["generated_text"].startswith("the cat")
        assert predictor.labels is None

    @pytest.mark.slow
    def test_tokens_are_classified(self, base: Path, tmp_path: Path) -> None:
        options = {"id2label": dict(enumerate(LABELS))}
        model = tuned(AutoModelForTokenClassification.from_pretrained(str(base), **options))
        save_adapters(model, tmp_path / "a")
        predictor = load_pelt(tmp_path / "a")
        assert type(predictor.model) is type(model)
        assert [each["word"] for each in predictor("the cat sat")] == ["the", "cat", "sat"]

    @pytest.mark.slow
    def test_a_model_without_a_head_gives_features(self, base: Path, tmp_path: Path) -> None:
        model = tuned(AutoModel.from_pretrained(str(base)))
        save_adapters(model, tmp_path / "a")
        predictor = load_pelt(tmp_path / "a")
        assert predictor.tokenizer is not None
        with torch.no_grad():
            expected = model(**predictor.tokenizer("a dog", return_tensors="pt"))[0]
        assert torch.allclose(torch.tensor(predictor("a dog")), expected, atol=1e-6)

    @pytest.mark.slow
    def test_a_sequence_to_sequence_model_generates(self, tmp_path: Path) -> None:
        config = T5Config(
            vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
            decoder_start_token_id=0,
        )  # fmt: skip
        draw(T5ForConditionalGeneration(config)).save_pretrained(tmp_path / "base")
        save_tokenizer(tmp_path / "base")
        model = tuned(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base"))
        save_adapters(model, tmp_path / "a")
        predictor = load_pelt(tmp_path / "a")
        assert predictor.tokenizer is not None
        found = predictor(["the cat", "a dog sat"], max_new_tokens=4, do_sample=False)
        batch = predictor.tokenizer(["the cat", "a dog sat"], return_tensors="pt", padding=True)
        del batch["token_type_ids"]
        ids = model.generate(**batch, max_new_tokens=4, do_sample=False)
        texts = predictor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        assert [each["generated_text"] for each in found] == texts
        with pytest.raises(ValueError, match=r"no pipeline for T5.*predictor\.model"):
            _ = predictor.pipeline

    @pytest.mark.slow
    def test_images_are_classified(self, tmp_path: Path) -> None:
        image = pytest.importorskip("PIL.Image").new("RGB", (16, 16), (200, 30, 10))
        config = ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            image_size=16, patch_size=8,
        )  # fmt: skip
        draw(ViTModel(config)).save_pretrained(tmp_path / "base")
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "base")
        options = {"id2label": dict(enumerate(LABELS))}
        model = tuned(AutoModelForImageClassification.from_pretrained(tmp_path / "base", **options))
        save_adapters(model, tmp_path / "a")
        predictor = load_pelt(tmp_path / "a")
        with torch.no_grad():
            expected = model(**predictor.processor(image, return_tensors="pt")).logits.softmax(-1)
        assert predictor(image)[0]["label"] == LABELS[int(expected.argmax())]
        assert predictor.tokenizer is None

    @pytest.mark.slow
    def test_speech_is_recognised(self, tmp_path: Path) -> None:
        folder = Path(media.whisper(tmp_path / "base"))
        for file in folder.glob("token*"):
            file.unlink()
        words = ["<pad>", "<|endoftext|>", "<|startoftranscript|>", "<unk>", "l", "h"]
        words += ["<|notimestamps|>", "<|transcribe|>", "<|translate|>"]
        WhisperTokenizer(
            vocab={word: i for i, word in enumerate(words)},
            merges=[],
            pad_token="<pad>",
            unk_token="<unk>",
        ).save_pretrained(folder)
        model = tuned(AutoModelForSpeechSeq2Seq.from_pretrained(folder))
        save_adapters(model, tmp_path / "a")
        predictor = load_pelt(tmp_path / "a")
        wave = media.tone("low", seconds=0.5)
        sound = {"raw": wave, "sampling_rate": media.RATE}
        features = predictor.processor(wave, sampling_rate=media.RATE, return_tensors="pt")
        inputs = {**features, "decoder_input_ids": torch.tensor([[2, 4, 5]])}
        torch.testing.assert_close(predictor.model(**inputs).logits, model(**inputs).logits)
        assert list(predictor(sound, generate_kwargs={"max_new_tokens": 8})) == ["text"]


def test_several_profiles_are_chosen_around_the_call(base: Path, tmp_path: Path) -> None:
    bank = RandomBank(size=6, seed=3)
    method = XPEFT(bank=bank, k=2, bottleneck=4, profiles=3, head="profile")
    model = classifier(base, Plan.uniform(method))
    ids = torch.tensor([[2, 5, 6, 3]])
    predictor = load_pelt(save_adapters(model, tmp_path / "adapters"))
    scores = []
    for number in range(3):
        with torch.no_grad():
            wanted = model(input_ids=ids, profile=torch.tensor([number])).logits.softmax(-1)[0]
        with profiles_of(predictor.model, [number]):
            (found,) = predictor(["the cat"], top_k=None)
        scores.append([each["score"] for each in sorted(found, key=lambda e: e["label"])])
        torch.testing.assert_close(torch.tensor(scores[-1]), wanted)
    assert scores[0] != scores[1] != scores[2]
    with pytest.raises(ValueError, match="3 profiles and the batch does not name"):
        predictor("the cat")


class TestAsItWasTrained:
    def test_options_of_from_pretrained_are_kept(self, base: Path, tmp_path: Path) -> None:
        model = classifier(base, hidden_act="relu", layer_norm_eps=1e-3)
        save_adapters(model, tmp_path / "a")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            predictor = load_pelt(tmp_path / "a", strict=True)
        assert predictor.model.config.hidden_act == "relu"
        assert torch.equal(logits(predictor.model), logits(model))

    def test_the_dtype_is_kept_unless_another_is_given(self, base: Path, tmp_path: Path) -> None:
        model = classifier(base, dtype=torch.bfloat16)
        save_adapters(model, tmp_path / "a")
        assert torch.equal(logits(load_pelt(tmp_path / "a").model), logits(model))
        wide = load_pelt(tmp_path / "a", dtype=torch.float32)
        assert wide.model.dtype == torch.float32

    def test_new_tokens(self, base: Path, tmp_path: Path) -> None:
        words = [*WORDS, "zebra", "lion"]
        model = AutoModelForSequenceClassification.from_pretrained(
            str(base), id2label=dict(enumerate(LABELS))
        )
        model.resize_token_embeddings(len(words))
        with pytest.warns(UserWarning, match="rows of new tokens"):
            model = tuned(model)
        folder = save_adapters(model, tmp_path / "a")
        save_tokenizer(folder, words)
        predictor = load_pelt(folder)
        assert predictor.tokenizer is not None
        ids = predictor.tokenizer("the zebra ran", return_tensors="pt")
        assert len(words) - 2 in ids["input_ids"]
        with torch.no_grad():
            expected = model(**ids).logits
            assert torch.equal(predictor.model(**ids).logits, expected)

    def test_new_tokens_that_no_tokenizer_knows(self, base: Path, tmp_path: Path) -> None:
        model = AutoModelForSequenceClassification.from_pretrained(str(base))
        model.resize_token_embeddings(len(WORDS) + 2)
        with pytest.warns(UserWarning, match="rows of new tokens"):
            folder = save_adapters(tuned(model), tmp_path / "a")
        with pytest.warns(UserWarning, match=r"2 new tokens.*tokenizer.save_pretrained"):
            load_pelt(folder)

    def test_other_weights_are_named(self, folder: Path, tmp_path: Path) -> None:
        other = save_base(tmp_path / "other", seed=1)
        with pytest.warns(UserWarning, match="trained on another backbone.*other values"):
            load_pelt(folder, backbone=str(other))
        with pytest.raises(ValueError, match="trained on another backbone"):
            load_pelt(folder, backbone=str(other), strict=True)

    @pytest.mark.parametrize("changes", [{"hidden_size": 32}, {"num_hidden_layers": 1}])
    def test_another_architecture(self, folder: Path, tmp_path: Path, changes: Any) -> None:
        other = save_base(tmp_path / "other", **changes)
        name = next(iter(changes))
        with pytest.raises(OSError, match=rf"other' lacks .*had other values of {name}"):
            load_pelt(folder, backbone=str(other))

    def test_a_part_of_the_blocks(self, base: Path, tmp_path: Path) -> None:
        model = classifier(base, num_hidden_layers=1)
        save_adapters(model, tmp_path / "a")
        predictor = load_pelt(tmp_path / "a", strict=True)
        assert torch.equal(logits(predictor.model), logits(model))

    def test_another_kind_of_model(self, folder: Path, tmp_path: Path) -> None:
        other = save_decoder(tmp_path / "other")
        with pytest.raises(ValueError, match=r"other.* of type 'gpt2'.*BertForSequenceClass"):
            load_pelt(folder, backbone=str(other))

    def test_the_global_random_state_stays(self, folder: Path) -> None:
        before = torch.random.get_rng_state()
        load_pelt(folder)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_no_advice_to_train_the_head(self, folder: Path, caplog: Any) -> None:
        load_pelt(folder)
        assert "LOAD REPORT" not in caplog.text


class TestAround:
    def test_twice_and_saved_again(self, base: Path, folder: Path, tmp_path: Path) -> None:
        predictor = load_pelt(folder)
        again = load_pelt(save_adapters(predictor.model, tmp_path / "again"))
        assert torch.equal(logits(again.model), logits(predictor.model))
        assert (tmp_path / "again" / CONFIG).read_bytes() == (folder / CONFIG).read_bytes()

    def test_merged_and_detached(self, base: Path, folder: Path) -> None:
        predictor = load_pelt(folder)
        before = predictor("the cat sat")
        merge(predictor.model)
        (found,) = predictor("the cat sat")
        assert found["label"] == before[0]["label"]
        assert found["score"] == pytest.approx(before[0]["score"], abs=1e-5)
        other = load_pelt(folder)
        detach(other.model)
        assert torch.equal(other.model.bert.embeddings.word_embeddings.weight, words_of(base))

    @pytest.mark.slow
    def test_a_compiled_or_wrapped_model_is_named_by_its_class(
        self, base: Path, tmp_path: Path
    ) -> None:
        model = classifier(base)
        save_adapters(torch.compile(model), tmp_path / "a")
        assert torch.equal(logits(load_pelt(tmp_path / "a").model), logits(model))

    def test_a_base_that_was_moved(self, base: Path, folder: Path, tmp_path: Path) -> None:
        before = logits(load_pelt(folder).model)
        base.rename(tmp_path / "moved")
        with pytest.raises(OSError, match=r"no such folder.*load_pelt\(folder, backbone="):
            load_pelt(folder)
        predictor = load_pelt(folder, backbone=str(tmp_path / "moved"))
        assert torch.equal(logits(predictor.model), before)
        assert predictor("the cat")

    @pytest.mark.slow
    def test_a_base_without_a_tokenizer(self, base: Path, folder: Path, tmp_path: Path) -> None:
        kept = save_tokenizer(tmp_path / "tokenizer")
        for path in base.glob("*token*"):
            path.unlink()
        with pytest.warns(UserWarning, match=r"tokenizer .*cannot be loaded.*tokenizer="):
            predictor = load_pelt(folder)
        assert predictor.tokenizer is None
        with pytest.raises(ValueError, match=r"no tokenizer: give load_pelt\(folder, tokenizer="):
            predictor("the cat")
        for given in (kept, str(tmp_path / "tokenizer")):
            assert load_pelt(folder, tokenizer=given)("the cat")
        with pytest.raises(OSError, match="nowhere"):
            load_pelt(folder, tokenizer=str(tmp_path / "nowhere"))


def words_of(base: Path) -> torch.Tensor:
    return BertModel.from_pretrained(base).embeddings.word_embeddings.weight  # type: ignore[no-any-return, operator]


class TestRefused:
    def test_a_name_that_is_nothing(self) -> None:
        with pytest.raises(OSError, match="no folder 'my_adapter' on this machine, and my_adapter"):
            load_pelt("my_adapter")
        with pytest.raises(FileNotFoundError, match="no folder 'my adapter', and it is no name"):
            load_pelt("my adapter")
        with pytest.raises(FileNotFoundError, match="no folder nowhere"):
            load_pelt("./nowhere")

    def test_other_formats_name_their_loader(self, base: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"whole model of transformers.*from_pretrained"):
            load_pelt(base)
        (tmp_path / "peft").mkdir()
        (tmp_path / "peft" / CONFIG).write_text(json.dumps({"peft_type": "LORA"}))
        with pytest.raises(ValueError, match=r"PEFT's format.*load_peft"):
            load_pelt(tmp_path / "peft")

    def test_a_checkpoint_names_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "last.ckpt").write_bytes(b"")
        with pytest.raises(ValueError, match=r"load_from_checkpoint.*save_adapters"):
            load_pelt(tmp_path / "last.ckpt")

    def test_a_head_beside_the_model(self, base: Path, tmp_path: Path) -> None:
        class Mine(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model, self.own = AutoModel.from_pretrained(str(base)), nn.Linear(16, 2)

        module = Mine()
        attach(module, PLAN)
        save_adapters(module, tmp_path / "a")
        with pytest.raises(ValueError, match=r"own.bias .*load_adapters\(module, folder\)"):
            load_pelt(tmp_path / "a")
        load_adapters(Mine(), tmp_path / "a")

    def test_a_base_without_a_name(self, tmp_path: Path) -> None:
        model = tiny_bert()
        attach(model, PLAN)
        folder = save_adapters(model, tmp_path / "a")
        with pytest.raises(ValueError, match=r"does not name the base.*backbone="):
            load_pelt(folder)

    def test_a_class_of_the_user(self, base: Path, tmp_path: Path) -> None:
        class Mine(BertForSequenceClassification):
            pass

        model = tuned(Mine.from_pretrained(base, id2label=dict(enumerate(LABELS))))
        folder = save_adapters(model, tmp_path / "a")
        with pytest.raises(ValueError, match=r"Mine' is no model class.*model_class="):
            load_pelt(folder)
        predictor = load_pelt(folder, model_class=Mine)
        assert type(predictor.model) is Mine
        assert torch.equal(logits(predictor.model), logits(model))
        with pytest.raises(ValueError, match="no pipeline for"):
            predictor("the cat")

    @pytest.mark.parametrize("name", ["pipeline", "BertTokenizer", "os.system", "BertConfig"])
    def test_a_file_cannot_name_any_other_object(self, folder: Path, name: str) -> None:
        change(folder, **{"class": name})
        with pytest.raises(ValueError, match="is no model class of the installed transformers"):
            load_pelt(folder)

    def test_a_file_cannot_name_code(self, base: Path, folder: Path) -> None:
        config, _ = read_adapters(folder / TENSORS)
        bad = {"auto_map": {"AutoModel": "evil--code.Model"}, "_name_or_path": "evil"}
        change(folder, config=config["backbone"]["config"] | bad)
        path = base / "config.json"
        mine = json.loads(path.read_text()) | {"auto_map": {"AutoModel": "good--code.Model"}}
        path.write_text(json.dumps(mine))
        model = load_pelt(folder).model
        assert "evil" not in json.dumps(model.config.to_dict(), default=str)

    def test_entries_that_are_no_plain_values(self, folder: Path) -> None:
        for entries in ({"labels": 3}, {"settings": [1]}, {"config": "none"}):
            other = folder.with_name("other")
            config, tensors = read_adapters(folder / TENSORS)
            write_adapters(
                other, tensors, plan=config["plan"], backbone=config["backbone"] | entries
            )
            with pytest.raises(ValueError, match=f"{TENSORS}.*{next(iter(entries))}"):
                load_pelt(other)


class TestOlderFiles:
    """Files of version 0.1, and of format 2 before it named the class."""

    @pytest.fixture(params=["2", WITHOUT_DIGESTS])
    def old(self, folder: Path, request: pytest.FixtureRequest) -> Path:
        new = {"class": None, "dtype": None, "settings": None, "digest": None}
        change(folder, **new)
        if request.param == WITHOUT_DIGESTS:
            config, tensors = read_adapters(folder / TENSORS)
            del config["sha256"]
            header = {"lightning_pelt": json.dumps(config | {"format": WITHOUT_DIGESTS})}
            save_file(tensors, folder / TENSORS, metadata=header)
            (folder / CONFIG).unlink()
        return folder

    def test_they_need_the_class(self, base: Path, old: Path) -> None:
        with pytest.raises(ValueError, match=r"an older version wrote it.*model_class="):
            load_pelt(old)
        expected = AutoModelForSequenceClassification.from_pretrained(
            base, id2label=dict(enumerate(LABELS))
        ).eval()
        load_adapters(expected, old)
        for given in ("AutoModelForSequenceClassification", AutoModelForSequenceClassification):
            predictor = load_pelt(old, model_class=given)
            assert torch.equal(logits(predictor.model), logits(expected))
            assert predictor.labels == LABELS


@pytest.mark.slow
def test_predicting_imports_no_lightning(folder: Path) -> None:
    code = f"""
import sys
from lightning_pelt.exchange.loading import load_pelt
print(load_pelt({str(folder)!r})("the cat sat"))
names = {{name.partition(".")[0] for name in sys.modules}}
assert not names & {{"lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics"}}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "label" in done.stdout


@pytest.mark.slow
def test_a_run_with_the_callback(base: Path, tmp_path: Path) -> None:
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader

    from lightning_pelt import PELTCallback

    class Mine(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = AutoModelForSequenceClassification.from_pretrained(
                str(base), id2label=dict(enumerate(LABELS))
            )

        def training_step(self, batch: Any, _: int) -> Any:
            return self.net(input_ids=batch[0], labels=batch[1]).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.1)

    rows = [(torch.randint(5, len(WORDS), (6,)), torch.tensor(i % 3)) for i in range(8)]
    module = Mine()
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False,
        callbacks=[PELTCallback(Plan.uniform(LoRA(r=2)))], default_root_dir=tmp_path,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows, batch_size=4))
    predictor = load_pelt(save_adapters(module, tmp_path / "a"))
    assert torch.equal(logits(predictor.model), logits(module.net.eval()))
    assert predictor("the cat sat")[0]["label"] in LABELS
