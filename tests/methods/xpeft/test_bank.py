"""Random banks: the same from a seed on every machine, in every dtype and size."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from methods.xpeft.adapters import BERT, digests
from processes import context

from lightning_pelt import RandomBank, TrainedBank
from lightning_pelt.methods.xpeft import Bank

SMALL: Any = {"blocks": 2, "width": 12, "bottleneck": 5}  # 60 values: not a multiple of 16
RANDOM_DIGEST = "0a41fce0a6d090b43f0867e08055a8d33880bf2b647d6bb42e2136168e8094fe"
MASK = 2**64 - 1


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Philox-4x64 with 10 rounds, as in figure 2 of Salmon et al. (2011)."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & MASK, (p0 >> 64) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [c0, c1, c2, c3]


def weights(seed: int, stream: tuple[int, int, int], count: int) -> list[float]:
    """The algorithm of a stream (adapter, side, block), one weight at a time."""
    found: list[float] = []
    group = 1
    while len(found) < count:
        for word in philox((group, *stream), (seed, 1)):
            pieces = [(word >> shift) & 0xFFFF for shift in (0, 16, 32, 48)]
            found += [(bin(piece).count("1") - 8) / 128 for piece in pieces]
        group += 1
    return found[:count]


def test_the_reference_philox_gives_the_known_answers_of_its_authors():
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
def test_every_weight_follows_the_algorithm(seed):
    bank = RandomBank(seed=seed, size=3).load(**SMALL)
    for block in range(2):
        for adapter in range(3):
            for side, tensor in enumerate((bank.A, bank.B)):
                expected = weights(seed, (adapter, side, block), 60)
                assert tensor[block, adapter].tolist() == expected


def test_the_stream_is_pinned():
    """Stored profiles refer to their bank by its digest: neither may change in any version."""
    bank = RandomBank(seed=0, size=3)
    first = (bank.load(**SMALL).A[0, 0, :12] * 128).int().tolist()
    assert first == [1, 1, 1, 0, -1, -3, -1, -1, -4, 0, -2, 2]
    assert bank.digest(**SMALL) == RANDOM_DIGEST


def test_the_digest_is_over_the_integers_in_their_order():
    streams = [(i, side, block) for block in range(2) for side in range(2) for i in range(3)]
    integers = [int(128 * w) % 256 for stream in streams for w in weights(0, stream, 60)]
    header = b'["random bank", 1, 2, 3, 12, 5]'
    assert hashlib.sha256(header + bytes(integers)).hexdigest() == RANDOM_DIGEST


def test_a_larger_bank_contains_the_smaller_one():
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


@pytest.mark.slow
def test_another_process_has_the_same_digest():
    with ProcessPoolExecutor(1, mp_context=context()) as pool:
        there = pool.submit(digests, RandomBank(seed=9), SMALL).result()
    here = RandomBank(seed=9).load(**SMALL).digest
    assert there == (here, here)


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


def test_mean_and_standard_deviation_are_as_documented():
    bank = RandomBank(size=100).load(blocks=2, width=64, bottleneck=16)
    for side in (bank.A, bank.B):
        deviation = 2**-6 / side.numel() ** 0.5  # standard error of the mean
        assert abs(side.mean().item()) < 4 * deviation
        assert side.std().item() == pytest.approx(2**-6, rel=0.01)
        assert side.abs().max() <= 2**-4


def test_no_adapter_is_dead():
    """An up-projection of zeros, with which LoRA starts, would make all profiles equal."""
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


@pytest.mark.parametrize("bank", [RandomBank(seed=3, size=7), TrainedBank(folders=["a", "b"])])
def test_a_bank_is_plain_data(bank):
    fields = json.loads(json.dumps(dataclasses.asdict(bank)))
    again = type(bank)(**fields)
    assert isinstance(again, Bank)
    assert again == bank
    assert hash(again) == hash(bank)


@pytest.mark.parametrize("shape", [{"blocks": 0}, {"width": 0}, {"bottleneck": -1}])
def test_sizes_below_one_raise(shape):
    whole = {**SMALL, **shape}
    name, value = next(iter(shape.items()))
    for call in (RandomBank().load, RandomBank().digest, TrainedBank(["a"]).load):
        with pytest.raises(ValueError, match=rf"{name}={value}.* each must be at least 1"):
            call(**whole)


def test_a_dtype_that_cannot_hold_the_weights_raises():
    with pytest.raises(ValueError, match=r"as torch\.int8: use torch\.float32 or torch\.bfloat16"):
        RandomBank().load(**SMALL, dtype=torch.int8)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_raises(seed):
    with pytest.raises(ValueError, match=rf"seed={seed}, expected 0 to 2"):
        RandomBank(seed=seed)


def test_an_empty_bank_raises():
    with pytest.raises(ValueError, match="size=0, expected at least 1 adapter"):
        RandomBank(size=0)
    with pytest.raises(ValueError, match="has no folders, expected folders of one adapter each"):
        TrainedBank([])


def test_folders_that_are_not_a_list_of_folders_raise():
    with pytest.raises(ValueError, match=r"folders='a', expected .*TrainedBank\(folders=\['a'\]\)"):
        TrainedBank("a")
    with pytest.raises(ValueError, match=r"has the bank 'b\.safetensors' among other paths"):
        TrainedBank(["a", "b.safetensors"])
