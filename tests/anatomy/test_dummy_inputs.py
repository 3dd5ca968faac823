"""Dummy inputs run a model of any input, and running one leaves no trace."""

from __future__ import annotations

import copy
import importlib
import pkgutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import families
import pytest
import torch
from families.family import Family
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PoolFormerConfig,
    PoolFormerModel,
    PreTrainedModel,
    SegformerConfig,
    SegformerModel,
)

from lightning_pelt import UniPELT, attach
from lightning_pelt.anatomy import examine
from lightning_pelt.anatomy.dummy_inputs import (
    base_of,
    dummy_inputs,
    rows_of,
    tried_inputs,
    undisturbed,
)
from lightning_pelt.anatomy.dummy_inputs.candidates import candidates
from lightning_pelt.testing import tiny_bert, tiny_gpt2

WORDS: dict[str, tuple[int, ...]] = {"input_ids": (1, 8)}
# Shapes by hand: an image of 28 pixels has 2 x 2 patches of 14, each of them a feature, unless
# features are pooled. Grids of 4 x 4 patches are merged 2 x 2.
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "bert": WORDS,
    "t5": {**WORDS, "decoder_input_ids": (1, 7)},
    "layoutlm": {**WORDS, "bbox": (1, 8, 4)},
    "lxmert": {**WORDS, "visual_feats": (1, 3, 24), "visual_pos": (1, 3, 4)},
    "wav2vec2-bert": {"input_features": (1, 40, 160)},
    "wav2vec2": {"input_values": (1, 4000)},
    # Its main input, ``inputs``, is another name of the waveform.
    "speech-encoder-decoder": {"input_values": (1, 4000), "decoder_input_ids": (1, 7)},
    "clip": {**WORDS, "pixel_values": (1, 3, 64, 64)},
    "idefics": {
        **WORDS,
        "pixel_values": (1, 1, 3, 28, 28),
        "image_attention_mask": (1, 8, 1),
    },
    "llava": {"input_ids": (1, 4 + 8), "pixel_values": (1, 3, 28, 28)},
    "llava_next": {
        "input_ids": (1, 10 + 8),  # 4 of the whole, 4 of the two tiles after unpadding, 2 newlines
        "pixel_values": (1, 3, 3, 28, 28),
        "image_sizes": (1, 2),
    },
    "idefics3": {"input_ids": (1, 4 + 8), "pixel_values": (1, 1, 3, 56, 56)},
    "paligemma": {"input_ids": (1, 4 + 8), "pixel_values": (1, 3, 28, 28)},
    "gemma3": {"input_ids": (1, 4 + 8), "pixel_values": (1, 3, 56, 56)},
    "qwen2_vl": {
        "input_ids": (1, 4 + 8),
        "image_grid_thw": (1, 3),
        "pixel_values": (16, 3 * 2 * 14 * 14),
        "mm_token_type_ids": (1, 4 + 8),
    },
    "qwen3_vl": {
        "input_ids": (1, 4 + 8),
        "image_grid_thw": (1, 3),
        "pixel_values": (16, 3 * 2 * 16 * 16),
        "mm_token_type_ids": (1, 4 + 8),
    },
    "lfm2_vl": {
        "input_ids": (1, 4 + 8),
        "pixel_values": (1, 16, 3 * 16 * 16),
        "pixel_attention_mask": (1, 16),
        "spatial_shapes": (1, 2),
    },
}
# Those of which the number of frames, the length or the width is an entry of the configuration.
BY_ENTRY = [  # label, argument, entry, dimension
    ("videomae", "pixel_values", "num_frames", 1),
    ("vivit", "pixel_values", "num_frames", 1),
    ("vit", "pixel_values", "image_size", 3),
    ("audio-spectrogram-transformer", "input_values", "max_length", 1),
    ("audio-spectrogram-transformer", "input_values", "num_mel_bins", 2),
    ("parakeet_ctc", "input_features", "encoder_config.num_mel_bins", 2),
    ("patchtst", "past_values", "context_length", 1),
    ("patchtst", "past_values", "num_input_channels", 2),
    ("timesfm", "past_values", "context_length", 1),
]
# Further families of the kinds that the package is asked for most.
OTHERS = (
    *("timesformer", "siglip2_vision_model", "mask2former"),
    *("grounding-dino", "speecht5-asr", "speecht5-tts"),
    *("blip-2", "mllama", "gemma4"),
    *("qwen2_5_omni_thinker", "qwen2_audio", "musicgen"),
)


def family(label: str) -> Family:
    names = (module.name for module in pkgutil.iter_modules(families.__path__))
    modules = (importlib.import_module(f"families.{n}") for n in names if not n.startswith("test"))
    entries = (entry for module in modules for entry in getattr(module, "FAMILIES", ()))
    return next(entry for entry in entries if entry.label == label)


def build(name: str) -> Any:
    return base_of(family(name).build())


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str) -> None:
    inputs = dummy_inputs(build(name))
    mask = inputs.pop("attention_mask", None)
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == SHAPES[name]
    if mask is not None:  # as a tokenizer gives it
        rows = inputs.get("input_ids", inputs.get("input_values"))
        assert torch.equal(mask, torch.ones_like(rows, dtype=torch.long))


@pytest.mark.parametrize(("name", "argument", "entry", "dimension"), BY_ENTRY)
def test_shapes_of_the_configuration(name: str, argument: str, entry: str, dimension: int) -> None:
    model = build(name)
    stated = model.config
    for part in entry.split("."):
        stated = getattr(stated, part)
    assert dummy_inputs(model)[argument].shape[dimension] == stated


@pytest.mark.parametrize("name", (*SHAPES, *OTHERS))
def test_every_part_runs(name: str) -> None:
    model = build(name)
    parts = {n: m for n, m in model.named_modules() if isinstance(m, PreTrainedModel)}
    ran = set()
    for path, part in parts.items():
        part.register_forward_pre_hook(lambda *_, path=path: ran.add(path))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        dummy_inputs(model)
    assert parts.keys() - ran <= NOT_CALLED.get(name, set())


# The decoders of OPT and mBART are called without the model around them, and a codec only makes
# waves of words.
NOT_CALLED = {
    "blip-2": {"language_model.model"},
    "musicgen": {"audio_encoder"},
    "speech-encoder-decoder": {"decoder.model"},
}


def test_a_size_that_is_not_stated() -> None:
    """Four positions of a side are left after five halvings."""
    shape: dict[str, Any] = {"depths": [1] * 4, "hidden_sizes": [8, 16, 16, 16]}
    for model in (
        SegformerModel(SegformerConfig(**shape, num_attention_heads=[1] * 4)),
        PoolFormerModel(PoolFormerConfig(**shape)),
    ):
        pixels = dummy_inputs(model)["pixel_values"]
        assert pixels.shape == (1, 3, 128, 128)
        with torch.no_grad():
            assert model.eval()(pixel_values=pixels).last_hidden_state.shape[-2:] == (4, 4)


# Words.


def test_a_model_of_words_has_one_candidate() -> None:
    assert len(candidates(base_of(tiny_bert()))) == 1
    assert len(candidates(base_of(tiny_gpt2()))) == 1


def llama(**options: Any) -> PreTrainedModel:
    shape: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
    }
    return LlamaForCausalLM(LlamaConfig(**shape, **options)).eval()


def test_words_have_no_special_meaning() -> None:
    model = llama(pad_token_id=3, eos_token_id=[5, 6])
    assert dummy_inputs(base_of(model))["input_ids"].tolist() == [[4, *range(7, 14)]]


@pytest.mark.parametrize("size", [2, 4])
def test_a_vocabulary_of_few_words(size: int) -> None:
    model = llama()
    model.resize_token_embeddings(size)
    assert dummy_inputs(base_of(model))["input_ids"].max() < size


def test_placeholders_are_as_many_as_the_features() -> None:
    entry = family("llava")
    model = entry.build()
    ids = dummy_inputs(base_of(model))["input_ids"]
    assert (ids == model.config.image_token_id).sum() == 4
    model.config.image_token_id = int(ids[0, -1])  # a word
    ids = dummy_inputs(base_of(model))["input_ids"]
    assert (ids == model.config.image_token_id).sum() == 4


# What is no model of transformers' own.


class Scored(BertModel):
    """Wants scores, which its own dummy inputs hold."""

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([[7, 8, 9]]), "scores": torch.ones(1, 3, 1)}

    def forward(self, input_ids: Any, scores: Any = None, **options: Any) -> Any:
        embeddings = self.embeddings(input_ids) * scores
        return super().forward(inputs_embeds=embeddings, **options)


def bert_config() -> BertConfig:
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertConfig(vocab_size=50, intermediate_size=64, **shape)


def test_the_dummy_inputs_of_the_model() -> None:
    model = Scored(bert_config()).eval()
    assert dummy_inputs(model)["scores"].shape == (1, 3, 1)
    assert len(attach(model, UniPELT()).anatomy.stacks) == 1


class Failing(BertModel):
    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.patches = nn.Conv2d(3, 32, 4)

    def forward(self, input_ids: Any = None, pixel_values: Any = None) -> Any:
        raise RuntimeError("no image" if pixel_values is None else "no word")


def test_all_failures_are_named() -> None:
    config = bert_config()
    config.image_size = 16
    model = Failing(config)
    with pytest.raises(ValueError, match="Failing cannot be examined") as caught:
        examine(model)
    message = str(caught.value)
    assert (
        "dummy input: input_ids (1, 8), pixel_values (1, 3, 16, 16) with RuntimeError: no word; "
        "input_ids (1, 8) with RuntimeError: no image. Give it"
    ) in message
    assert "example_inputs={...}" in message
    assert "by its path" in message
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_entry_of_another_type() -> None:
    config = bert_config()
    config.image_size = "16 x 16"
    with pytest.raises(ValueError, match=r"failed on making a dummy input.*example_inputs"):
        examine(Failing(config))


def test_a_tower_that_is_left_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family("llava").build()

    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("no such image")

    tower: Any = base_of(model).vision_tower
    monkeypatch.setattr(type(tower), "forward", _with_signature(type(tower).forward, fail))
    with pytest.warns(UserWarning, match="without pixel_values.*no such image.*example_inputs"):
        inputs = dummy_inputs(base_of(model))
    assert list(inputs) == ["input_ids", "attention_mask"]


def _with_signature(original: Any, replacement: Any) -> Any:
    replacement.__wrapped__ = original  # inspect.signature follows it
    return replacement


# No trace.


@pytest.mark.parametrize("name", ["qwen2_vl", "whisper"])
def test_nothing_changes(name: str) -> None:
    model = family(name).build().train()
    model.requires_grad_(True)
    weights, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    dummy_inputs(base_of(model))  # some classes register hooks at their first forward
    attributes = {path: set(vars(module)) for path, module in model.named_modules()}
    random = torch.get_rng_state()
    examine(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.config.to_dict() == config
    assert {path: set(vars(module)) for path, module in model.named_modules()} == attributes
    assert all(module.training for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())


def test_another_default_device() -> None:
    model = build("llava")
    with torch.device("meta"):  # as a trainer may set where modules are made
        inputs = dummy_inputs(model)
    assert {tensor.device.type for tensor in inputs.values()} == {"cpu"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    inputs = dummy_inputs(build("llava").to(dtype))
    assert inputs["pixel_values"].dtype == dtype
    assert inputs["input_ids"].dtype == torch.long


# Attention implementations.


def implementations(model: nn.Module) -> list[str]:
    return [vars(m.config)[ENTRY] for m in model.modules() if hasattr(m, "config")]


ENTRY = "_attn_implementation_internal"


@pytest.mark.parametrize(
    ("configured", "runs"),
    [
        ("flex_attention", "eager"),
        ("flash_attention_2", "eager"),
        ("kernels-community/flash-attn", "eager"),
        ("sdpa", "sdpa"),
        ("eager", "eager"),
    ],
)
def test_kernels_are_replaced_for_the_time_of_a_run(configured: str, runs: str) -> None:
    model = llama()
    vars(model.config)[ENTRY] = configured
    with undisturbed(model):
        assert set(implementations(model)) == {runs}
    assert set(implementations(model)) == {configured}
    with pytest.raises(KeyError), undisturbed(model):
        raise KeyError("an error of the forward")
    assert set(implementations(model)) == {configured}


def test_each_part_keeps_its_implementation() -> None:
    model = build("llava")
    vars(model.config.vision_config)[ENTRY] = "flash_attention_3"
    vars(model.config.text_config)[ENTRY] = "flex_attention"
    before = implementations(model)
    assert {"flash_attention_3", "flex_attention"} <= set(before)
    with undisturbed(model):
        assert set(implementations(model)) <= {"eager", "sdpa"}
    assert implementations(model) == before


def test_models_that_share_a_configuration_in_several_threads() -> None:
    """A thread that ends does not restore what another one has replaced."""
    models = [llama(attn_implementation="flex_attention")]
    models += [type(models[0])(models[0].config).eval() for _ in range(3)]
    with ThreadPoolExecutor(len(models)) as pool:
        found = [*pool.map(examine, models)]
    assert all(anatomy == found[0] for anatomy in found)
    assert all(set(implementations(model)) == {"flex_attention"} for model in models)


def test_attach_under_flex_attention() -> None:
    model = llama(attn_implementation="flex_attention")
    attachment = attach(model, UniPELT())
    assert attachment.anatomy == attach(llama(), UniPELT()).anatomy
    assert set(implementations(model)) == {"flex_attention"}


# Rows.


def test_two_rows_the_second_with_padding() -> None:
    model = family("llava").build()
    (base, double), (_, single) = list(tried_inputs(model, None))[:2]
    assert rows_of(single) == 1
    assert {name: len(tensor) for name, tensor in double.items()} == {
        "input_ids": 2,
        "pixel_values": 2,
        "attention_mask": 2,
    }
    assert double["attention_mask"].tolist() == [[1] * 12, [1] * 11 + [0]]
    with torch.no_grad():
        base(**double)


def test_patches_behind_each_other_are_not_doubled() -> None:
    model = build("qwen2_vl")
    given = [given for _, given in tried_inputs(model, None) if "pixel_values" in given]
    assert given
    assert all(rows_of(inputs) == 1 for inputs in given)


def test_the_grid_comes_before_the_patches() -> None:
    """Patches behind each other are one row."""
    model = build("qwen3_vl").visual
    inputs = dummy_inputs(model)
    assert {name: tuple(tensor.shape) for name, tensor in inputs.items()} == {
        "grid_thw": (1, 3),
        "hidden_states": (16, 3 * 2 * 16 * 16),
    }
    assert rows_of(inputs) == 1
