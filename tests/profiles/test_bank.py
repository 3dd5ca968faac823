"""Banks: the same from a seed everywhere, and from files only what was written there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from lightning_pelt import Adapter, Gate, Group, LoRA, Plan, attach, load_adapters, save_adapters
from lightning_pelt.profiles.bank import (
    Bank,
    BankTensors,
    RandomBank,
    TrainedBank,
    load_bank,
    save_bank,
)
from lightning_pelt.testing import tiny_bert

SMALL: Any = {"blocks": 2, "width": 12, "bottleneck": 5}  # 60 values: no multiple of a draw's 16
RANDOM_DIGEST = "0a41fce0a6d090b43f0867e08055a8d33880bf2b647d6bb42e2136168e8094fe"
TRAINED_DIGEST = "572069180755dad771dc958ae3e6d5acbbf0b542099ea2e851db94fdd90bade5"
BERT: Any = {"blocks": 2, "width": 32, "bottleneck": 4}

# -- from a seed --------------------------------------------------------------------------------

MASK = 2**64 - 1


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Philox-4x64 with 10 rounds, as in figure 2 of Salmon et al. (2011)."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & MASK, (p0 >> 64) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [c0, c1, c2, c3]


def weights(seed: int, place: tuple[int, int, int], count: int) -> list[float]:
    """The recipe of a stream (adapter, side, block), one weight at a time."""
    found: list[float] = []
    group = 1
    while len(found) < count:
        for word in philox((group, *place), (seed, 1)):
            pieces = [(word >> shift) & 0xFFFF for shift in (0, 16, 32, 48)]
            found += [(bin(piece).count("1") - 8) / 128 for piece in pieces]
        group += 1
    return found[:count]


def test_the_philox_of_these_tests_gives_the_known_answers_of_its_authors():
    assert philox((0, 0, 0, 0), (0, 0)) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]
    pi = (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89)
    assert philox(pi, (0x452821E638D01377, 0xBE5466CF34E90C6C)) == [
        0xA528F45403E61D95,
        0x38C72DBD566E9788,
        0xA5A1610E72FD18B5,
        0x57BD43B5E52B7FE6,
    ]


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_every_weight_follows_the_recipe(seed):
    bank = RandomBank(seed=seed, size=3).load(**SMALL)
    for block in range(2):
        for adapter in range(3):
            for side, tensor in enumerate((bank.A, bank.B)):
                expected = weights(seed, (adapter, side, block), 60)
                assert tensor[block, adapter].tolist() == expected


def test_the_stream_is_pinned():
    """Stored profiles name their bank by its digest: neither may ever change."""
    bank = RandomBank(seed=0, size=3)
    first = (bank.load(**SMALL).A[0, 0, :12] * 128).int().tolist()
    assert first == [1, 1, 1, 0, -1, -3, -1, -1, -4, 0, -2, 2]
    assert bank.digest(**SMALL) == RANDOM_DIGEST


def test_the_digest_is_over_the_integers_in_their_order():
    places = [(i, side, block) for block in range(2) for side in range(2) for i in range(3)]
    integers = [int(128 * w) % 256 for place in places for w in weights(0, place, 60)]
    header = b'["random bank", 1, 2, 3, 12, 5]'
    assert hashlib.sha256(header + bytes(integers)).hexdigest() == RANDOM_DIGEST


def test_a_bank_grows_without_disturbing_what_it_held():
    small = RandomBank(size=100).load(**SMALL)
    more = RandomBank(size=200).load(**SMALL)
    deeper = RandomBank(size=100).load(**{**SMALL, "blocks": 5})
    for side in ("A", "B"):
        assert torch.equal(getattr(more, side)[:, :100], getattr(small, side))
        assert torch.equal(getattr(deeper, side)[:2], getattr(small, side))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_holds_the_same_values(dtype):
    exact = RandomBank(seed=3).load(**SMALL)
    low = RandomBank(seed=3).load(**SMALL, dtype=dtype)
    for side in ("A", "B"):
        assert getattr(low, side).dtype == dtype
        assert torch.equal(getattr(low, side), getattr(exact, side).to(dtype))
        assert torch.equal(getattr(low, side).float(), getattr(exact, side))
    assert low.digest == exact.digest


def test_another_process_has_the_same_digest():
    code = (
        "from lightning_pelt.profiles.bank import RandomBank\n"
        "bank, shape = RandomBank(seed=9), dict(blocks=2, width=12, bottleneck=5)\n"
        "print(bank.digest(**shape), bank.load(**shape).digest)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = RandomBank(seed=9).load(**SMALL).digest
    assert done.stdout.split() == [here, here]


def test_no_two_banks_share_a_digest():
    shape = dict(SMALL)
    digests = [
        RandomBank(seed=0).digest(**shape),
        RandomBank(seed=1).digest(**shape),
        RandomBank(seed=0, size=101).digest(**shape),
        RandomBank(seed=0).digest(**{**shape, "blocks": 3}),
        RandomBank(seed=0).digest(**{**shape, "width": 10, "bottleneck": 6}),  # the same values
    ]
    assert len(set(digests)) == len(digests)
    assert all(len(digest) == 64 for digest in digests)


def test_seeds_blocks_sides_and_adapters_differ():
    one, other = (RandomBank(seed=seed, size=4).load(**SMALL) for seed in (0, 1))
    rows = torch.cat([bank.flatten(0, 1) for bank in (one.A, one.B, other.A, other.B)])
    assert len(rows.unique(dim=0)) == len(rows) == 32


def test_mean_and_spread_are_as_promised():
    bank = RandomBank(size=100).load(blocks=2, width=64, bottleneck=16)
    for side in (bank.A, bank.B):
        deviation = 2**-6 / side.numel() ** 0.5  # of the mean of so many
        assert abs(side.mean().item()) < 4 * deviation
        assert side.std().item() == pytest.approx(2**-6, rel=0.01)
        assert side.abs().max() <= 2**-4


def test_no_adapter_is_dead():
    """An up-projection of zeros, as LoRA begins with, would make every profile the same."""
    bank = RandomBank(size=100).load(**BERT)
    assert bank.a_bias is None
    assert bank.b_bias is None
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    for A, B in zip(bank.A.flatten(0, 1), bank.B.flatten(0, 1), strict=True):
        assert (torch.relu(x @ A.view(32, 4)) @ B.view(4, 32)).abs().max() > 1e-3


def test_the_sizes_of_a_bank():
    bank = RandomBank(size=7).load(**SMALL)
    assert (bank.blocks, bank.size, bank.width, bank.bottleneck) == (2, 7, 12, 5)
    assert bank.A.shape == bank.B.shape == (2, 7, 60)
    assert bank.A.is_contiguous()
    assert bank.B.is_contiguous()


# -- from our own folders -----------------------------------------------------------------------


def ours(folder: Path, *, seed: int = 0, plan: Plan | None = None) -> str:
    """A folder of ``save_adapters`` with an adapter that has been somewhere, biases included."""
    model = tiny_bert()
    attachment = attach(model, plan or Plan.uniform(Adapter(bottleneck=4), norms=False), seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for group in attachment.parameter_groups().values():
            for parameter in group:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return str(save_adapters(model, folder))


def apply(bank: BankTensors, block: int, adapter: int, x: Tensor) -> Tensor:
    """What the class says a bank means."""
    assert bank.a_bias is not None
    assert bank.b_bias is not None
    A = bank.A[block, adapter].view(bank.width, bank.bottleneck)
    B = bank.B[block, adapter].view(bank.bottleneck, bank.width)
    inner = torch.relu(x @ A + bank.a_bias[block, adapter])
    return inner @ B + bank.b_bias[block, adapter]


def test_our_adapters_compute_what_they_did_where_they_were_trained(tmp_path):
    plan = Plan.uniform(Adapter(bottleneck=4, name="mine"), norms=False)
    folders = [ours(tmp_path / "0"), ours(tmp_path / "1", seed=1, plan=plan)]
    bank = TrainedBank(folders=folders).load(**BERT)
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    model = tiny_bert()
    for adapter, folder in enumerate(folders):
        attachment = load_adapters(model, folder)
        (modules,) = attachment.submodules.values()
        for block, module in enumerate(modules):
            expected = module(torch.zeros_like(x), x)
            torch.testing.assert_close(apply(bank, block, adapter, x), expected)
        attachment.detach()


def test_the_blocks_are_in_the_order_of_their_numbers(tmp_path):
    """Names sort block 10 in front of block 2."""
    folder = hub(tmp_path, blocks=11)
    bank = TrainedBank([folder]).load(blocks=11, width=4, bottleneck=2)
    assert bank.b_bias is not None
    assert bank.b_bias[:, 0, 0].tolist() == [-float(block) for block in range(11)]


REFUSED = {
    "a gate": (Plan.uniform(Adapter(bottleneck=4, gate=Gate()), norms=False), r"gate=Gate\("),
    "another activation": (
        Plan.uniform(Adapter(bottleneck=4, activation="gelu"), norms=False),
        "activation='gelu', expected 'relu'",
    ),
    "attention": (
        Plan.uniform(Adapter(bottleneck=4, sites=("ffn", "attention")), norms=False),
        r"sites=\['ffn', 'attention'\], expected \['ffn'\]",
    ),
    "another placement": (
        Plan.uniform(Adapter(bottleneck=4, placement="parallel"), norms=False),
        "placement='parallel', expected 'unipelt'",
    ),
    "another method beside": (
        Plan.uniform(Adapter(bottleneck=4), LoRA(r=2), norms=False),
        "expected one Adapter and nothing else",
    ),
    "no adapter": (Plan.uniform(LoRA(r=2), norms=False), "expected one Adapter"),
    "trained norms": (Plan.uniform(Adapter(bottleneck=4), norms=True), "norms included"),
    "a missing block": (
        Plan([Group([Adapter(bottleneck=4)], blocks=[1])], norms=False),
        "has adapters in the blocks 1, expected 0 to 1",
    ),
    "another bottleneck": (
        Plan.uniform(Adapter(bottleneck=8), norms=False),
        r"down of block 0 is \(8, 32\), expected \(4, 32\)",
    ),
}


@pytest.mark.parametrize(("plan", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_adapter_that_does_not_fit_is_named(tmp_path, plan, message):
    good, bad = ours(tmp_path / "good"), ours(tmp_path / "bad", plan=plan)
    with pytest.raises(ValueError, match=message) as raised:
        TrainedBank([good, bad]).load(**BERT)
    assert bad in str(raised.value)
    assert good not in str(raised.value)


def test_a_truncated_adapter_is_named(tmp_path):
    path = Path(ours(tmp_path)) / "adapters.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"adapters\.safetensors is truncated"):
        TrainedBank([str(tmp_path)]).load(**BERT)


# -- from folders of AdapterHub -----------------------------------------------------------------

# What ``adapters`` 1.3.0 writes for SeqBnConfig, where it differs from one adapter to the next.
PFEIFFER = {
    "cross_adapter": False,
    "dropout": 0.0,
    "inv_adapter": None,
    "is_parallel": False,
    "leave_out": [],
    "ln_after": False,
    "ln_before": False,
    "mh_adapter": False,
    "non_linearity": "relu",
    "original_ln_after": True,
    "original_ln_before": True,
    "output_adapter": True,
    "phm_layer": False,
    "reduction_factor": 2,
    "residual_before_ln": True,
    "scaling": 1.0,
    "use_gating": False,
}


def hub_tensors(*, blocks: int = 2, width: int = 4, bottleneck: int = 2) -> dict[str, Tensor]:
    """The state of a Pfeiffer adapter named 7, with the block in the output's bias."""
    draw = torch.Generator().manual_seed(blocks + width + bottleneck)
    tensors = {}
    for block in sorted(range(blocks), key=str):
        prefix = f"bert.encoder.layer.{block}.output.adapters.7."
        tensors[f"{prefix}adapter_down.0.weight"] = torch.randn(bottleneck, width, generator=draw)
        tensors[f"{prefix}adapter_down.0.bias"] = torch.randn(bottleneck, generator=draw)
        tensors[f"{prefix}adapter_up.weight"] = torch.randn(width, bottleneck, generator=draw)
        tensors[f"{prefix}adapter_up.bias"] = torch.full((width,), -float(block))
    return tensors


def hub(
    folder: Path,
    *,
    name: str = "pytorch_adapter.bin",
    tensors: dict[str, Tensor] | None = None,
    config: dict[str, Any] | None = None,
    **shape: int,
) -> str:
    """A folder as AdapterHub's library writes it."""
    folder.mkdir(exist_ok=True)
    state = hub_tensors(**shape) if tensors is None else tensors
    whole = {"config": {**PFEIFFER, **(config or {})}, "model_type": "bert", "version": "1.3.0"}
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    if name.endswith(".bin"):
        torch.save(state, folder / name)
    elif name:
        save_file(state, folder / name)
    return str(folder)


HUB: Any = {"blocks": 2, "width": 4, "bottleneck": 2}


@pytest.mark.parametrize(
    "name", ["pytorch_adapter.bin", "adapter.safetensors", "model.safetensors"]
)
def test_adapters_of_the_hub_compute_what_they_did(tmp_path, name):
    bank = TrainedBank([hub(tmp_path, name=name)]).load(**HUB)
    state = hub_tensors()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    for block in range(2):
        prefix = f"bert.encoder.layer.{block}.output.adapters.7.adapter_"
        down = [state[f"{prefix}down.0.{kind}"] for kind in ("weight", "bias")]
        up = [state[f"{prefix}up.{kind}"] for kind in ("weight", "bias")]
        expected = F.linear(F.relu(F.linear(x, *down)), *up)
        torch.testing.assert_close(apply(bank, block, 0, x), expected)


def test_names_of_the_first_years_are_understood(tmp_path):
    old = {
        k.replace(".adapters.", ".layer_text_task_adapters."): t for k, t in hub_tensors().items()
    }
    folder = Path(hub(tmp_path / "old", tensors=old))
    settings = {"LN_after": False, "MH_Adapter": False, "Output_Adapter": True}
    settings = {**settings, "non_linearity": "relu", "invertible_adapter": None}
    (folder / "adapter_config.json").write_text(json.dumps({"config": settings}))
    new = TrainedBank([hub(tmp_path / "new")])
    assert TrainedBank([str(folder)]).digest(**HUB) == new.digest(**HUB)


def test_both_kinds_of_folders_go_together(tmp_path):
    folders = [ours(tmp_path / "ours"), hub(tmp_path / "hub", width=32, bottleneck=4)]
    both = TrainedBank(folders).load(**BERT)
    for adapter, folder in enumerate(folders):
        alone = TrainedBank([folder]).load(**BERT)
        assert torch.equal(both.A[:, adapter], alone.A[:, 0])
        assert torch.equal(both.B[:, adapter], alone.B[:, 0])
    assert both.size == 2
    swapped = TrainedBank(folders[::-1])
    assert swapped.digest(**BERT) != both.digest


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("mh_adapter", True),
        ("output_adapter", False),
        ("non_linearity", "swish"),
        ("cross_adapter", True),
        ("is_parallel", True),
        ("original_ln_before", False),
        ("original_ln_after", False),
        ("residual_before_ln", "post_add"),
        ("ln_before", True),
        ("ln_after", True),
        ("phm_layer", True),
        ("use_gating", True),
        ("scaling", 4.0),
        ("inv_adapter", "nice"),
    ],
)
def test_another_kind_of_adapter_of_the_hub_is_named(tmp_path, setting, value):
    folder = hub(tmp_path, config={setting: value})
    with pytest.raises(ValueError, match=f"{setting}={value!r}, expected") as raised:
        TrainedBank([folder]).load(**HUB)
    assert folder in str(raised.value)
    assert "ungated, relu, after the feed-forward layers" in str(raised.value)


def without(part: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in hub_tensors().items() if part not in key}


UP = "bert.encoder.layer.1.output.adapters.7.adapter_up.weight"
NORM = "bert.encoder.layer.1.output.adapters.7.adapter_norm_after.weight"
SPOILED = {
    "a norm": (
        {**hub_tensors(), NORM: torch.ones(4)},
        "adapter_norm_after.weight', which is no part of adapter_down or adapter_up",
    ),
    "two stacks": (
        {f"{s}.{k}": t for s in ("encoder", "decoder") for k, t in hub_tensors().items()},
        "two adapters in block 0",
    ),
    "a missing block": (without(".layer.0."), "in the blocks 1, expected 0 to 1"),
    "nothing": ({}, "in the blocks none, expected 0 to 1"),
    "a missing bias": (without("1.output.adapters.7.adapter_up.bias"), "up_bias of block 1 is mis"),
    "another shape": (
        {**hub_tensors(), UP: torch.ones(2, 4)},
        r"up of block 1 is \(2, 4\), expected \(4, 2\)",
    ),
    "NaN": ({**hub_tensors(), UP: torch.full((4, 2), torch.nan)}, "up of block 1 holds NaN"),
}


@pytest.mark.parametrize(("tensors", "message"), SPOILED.values(), ids=SPOILED.keys())
def test_tensors_that_are_no_such_adapter_are_named(tmp_path, tensors, message):
    folder = hub(tmp_path, tensors=tensors)
    with pytest.raises(ValueError, match=message) as raised:
        TrainedBank([folder]).load(**HUB)
    assert folder in str(raised.value)


class Harmful:
    """Runs code when it is unpickled by a reader that lets it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    folder = Path(hub(tmp_path))
    torch.save({"a": Harmful()}, folder / "pytorch_adapter.bin")
    with pytest.raises(ValueError, match=r"pytorch_adapter\.bin is truncated or holds more than"):
        TrainedBank([str(folder)]).load(**HUB)
    assert not Path("harm").exists()
    torch.save([torch.ones(2)], folder / "pytorch_adapter.bin")
    with pytest.raises(ValueError, match="something else than tensors by name"):
        TrainedBank([str(folder)]).load(**HUB)


@pytest.mark.parametrize("name", ["pytorch_adapter.bin", "adapter.safetensors"])
@pytest.mark.parametrize("keep", [0, 10, -200])
def test_truncated_weights_of_the_hub_are_named(tmp_path, name, keep):
    path = Path(hub(tmp_path, name=name)) / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{name} is truncated"):
        TrainedBank([str(tmp_path)]).load(**HUB)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": null}', '{"config": "pfeiffer"}'])
def test_a_foreign_configuration_is_named(tmp_path, text):
    (Path(hub(tmp_path)) / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"adapter_config\.json is not the configuration"):
        TrainedBank([str(tmp_path)]).load(**HUB)


def test_a_configuration_must_say_where_the_adapter_goes(tmp_path):
    (Path(hub(tmp_path)) / "adapter_config.json").write_text('{"config": {"ln_after": false}}')
    with pytest.raises(ValueError, match="output_adapter=None, expected True; mh_adapter=None"):
        TrainedBank([str(tmp_path)]).load(**HUB)


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trained adapter in .*nowhere: expected"):
        TrainedBank([str(tmp_path / "nowhere")]).load(**HUB)
    folder = hub(tmp_path, name="")
    with pytest.raises(FileNotFoundError, match=r"no weights: expected one of adapter\.safeten"):
        TrainedBank([folder]).load(**HUB)


# -- digests of trained banks, and a bank as one file -------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_digest_of_a_trained_bank_is_pinned_and_the_same_in_every_dtype(tmp_path, dtype):
    bank = TrainedBank([hub(tmp_path, tensors=eighths())])
    assert bank.digest(**HUB) == TRAINED_DIGEST
    tensors = bank.load(**HUB, dtype=dtype)
    assert tensors.digest == TRAINED_DIGEST
    parts = (tensors.A, tensors.B, tensors.a_bias, tensors.b_bias)
    assert {part.dtype for part in parts if part is not None} == {dtype}


def eighths() -> dict[str, Tensor]:
    """Each tensor counts 0, 1/8, 2/8, ..., which bfloat16 holds exactly."""
    state = hub_tensors().items()
    return {key: torch.arange(t.numel()).view(t.shape).float() / 8 for key, t in state}


def test_the_digest_is_over_bfloat16_in_the_layout_of_a_bank():
    A, B = [0, 4, 1, 5, 2, 6, 3, 7], [0, 2, 4, 6, 1, 3, 5, 7]  # (2, 4) and (4, 2), transposed
    counts = [count for part in (A, B, range(2), range(4)) for _ in range(2) for count in part]
    halves = b"".join(struct.pack("<f", count / 8)[2:] for count in counts)
    header = b'["trained bank", "1", 4, [[2, 1, 8], [2, 1, 8], [2, 1, 2], [2, 1, 4]]]'
    assert hashlib.sha256(header + halves).hexdigest() == TRAINED_DIGEST


def test_a_digest_follows_what_is_in_the_folder(tmp_path):
    bank = TrainedBank([hub(tmp_path)])
    before = bank.digest(**HUB)
    hub(tmp_path, tensors={**hub_tensors(), UP: torch.ones(4, 2)})
    assert bank.digest(**HUB) != before


def test_a_saved_bank_comes_back(tmp_path):
    folders = [ours(tmp_path / "0"), ours(tmp_path / "1", seed=1)]
    exact = TrainedBank(folders).load(**BERT)
    path = save_bank(exact, tmp_path / "new" / "bank.safetensors")
    assert path == tmp_path / "new" / "bank.safetensors"
    assert [p.name for p in path.parent.iterdir()] == ["bank.safetensors"]

    low, back = TrainedBank(folders).load(**BERT, dtype=torch.bfloat16), load_bank(path)
    file = TrainedBank([str(path)])
    whole = file.load(**BERT)
    assert file.size == 2
    for name in ("A", "B", "a_bias", "b_bias"):
        assert torch.equal(getattr(back, name), getattr(low, name))
        assert getattr(back, name).dtype == torch.bfloat16
        assert torch.equal(getattr(whole, name), getattr(low, name).float())
    assert (back.blocks, back.size, back.width, back.bottleneck) == (2, 2, 32, 4)
    assert exact.digest == low.digest == back.digest == whole.digest == file.digest(**BERT)

    again = save_bank(low, tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()


def test_every_flipped_byte_of_a_saved_bank_is_noticed(tmp_path):
    bank = TrainedBank([hub(tmp_path / "a")]).load(**HUB)
    path = save_bank(bank, tmp_path / "bank.safetensors")
    whole = path.read_bytes()
    assert len(whole) > 2 * sum(t.numel() for t in hub_tensors().values())
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"damaged|truncated|not one of save_bank"):
            load_bank(path)
    path.write_bytes(whole)
    assert load_bank(path).digest == bank.digest


def test_a_flipped_weight_is_called_damage(tmp_path):
    path = save_bank(TrainedBank([hub(tmp_path / "a")]).load(**HUB), tmp_path / "b.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    message = r"b\.safetensors is damaged: .* expected [0-9a-f]{64}\. Copy the file again"
    with pytest.raises(ValueError, match=message):
        TrainedBank([str(path)]).load(**HUB)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"b\.safetensors is truncated"):
        load_bank(path)
    with pytest.raises(ValueError, match=r"b\.safetensors is truncated"):
        _ = TrainedBank([str(path)]).size


def test_a_loaded_bank_does_not_change_along_with_its_file(tmp_path):
    path = save_bank(TrainedBank([hub(tmp_path / "a")]).load(**HUB), tmp_path / "b.safetensors")
    bank = load_bank(path)
    before = bank.A.clone()
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert torch.equal(bank.A, before)


def test_a_file_that_is_no_bank_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no bank .*none\.safetensors: save_bank writes"):
        load_bank(tmp_path / "none.safetensors")
    save_file({"A": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors .* not one of save_bank"):
        load_bank(tmp_path / "other.safetensors")


def test_a_bank_of_another_model_is_named(tmp_path):
    path = save_bank(TrainedBank([hub(tmp_path / "a")]).load(**HUB), tmp_path / "b.safetensors")
    expected = (
        r"b\.safetensors is a bank of blocks=2, width=4, bottleneck=2, expected "
        "blocks=2, width=2, bottleneck=4"
    )
    with pytest.raises(ValueError, match=expected):
        TrainedBank([str(path)]).load(blocks=2, width=2, bottleneck=4)


def test_only_an_unchanged_trained_bank_is_saved(tmp_path):
    path = tmp_path / "bank.safetensors"
    with pytest.raises(ValueError, match="a random bank needs no file"):
        save_bank(RandomBank(size=2).load(**HUB), path)
    bank = TrainedBank([hub(tmp_path / "a")]).load(**HUB)
    with pytest.raises(ValueError, match=f"digest [0-9a-f]{{64}} and claim {bank.digest}"):
        save_bank(dataclasses.replace(bank, A=bank.A * 2), path)
    with pytest.raises(ValueError, match=r"name it \*\.safetensors, not 'bank\.bin'"):
        save_bank(bank, tmp_path / "bank.bin")
    assert not path.exists()


# -- configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize("bank", [RandomBank(seed=3, size=7), TrainedBank(folders=["a", "b"])])
def test_a_bank_is_plain_data(bank):
    fields = json.loads(json.dumps(dataclasses.asdict(bank)))
    again = type(bank)(**fields)
    assert isinstance(again, Bank)
    assert again == bank
    assert hash(again) == hash(bank)


@pytest.mark.parametrize("shape", [{"blocks": 0}, {"width": 0}, {"bottleneck": -1}])
def test_sizes_below_one_are_refused(shape):
    whole = {**SMALL, **shape}
    name, value = next(iter(shape.items()))
    for call in (RandomBank().load, RandomBank().digest, TrainedBank(["a"]).load):
        with pytest.raises(ValueError, match=rf"{name}={value}.* each must be at least 1"):
            call(**whole)


def test_what_cannot_hold_the_weights_is_refused():
    with pytest.raises(ValueError, match=r"as torch\.int8: use torch\.float32 or torch\.bfloat16"):
        RandomBank().load(**SMALL, dtype=torch.int8)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=rf"seed={seed}: it must lie in \[0, 2\^64\)"):
        RandomBank(seed=seed)


def test_an_empty_bank_is_refused():
    with pytest.raises(ValueError, match="size=0: it needs at least 1 adapter"):
        RandomBank(size=0)
    with pytest.raises(ValueError, match="has no folders: give folders of one adapter each"):
        TrainedBank([])


def test_folders_that_are_not_a_list_of_folders_are_refused():
    with pytest.raises(ValueError, match=r"folders='a', .*TrainedBank\(folders=\['a'\]\)"):
        TrainedBank("a")
    with pytest.raises(ValueError, match=r"has the bank 'b\.safetensors' among others"):
        TrainedBank(["a", "b.safetensors"])
