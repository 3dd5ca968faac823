"""Ways to compute Compacter's adapters: ``python -m lightning_pelt.benchmark.variants``.

Adapters alone, one after the other, forward and backward, with gradients of their input and of all
weights. Every way takes a turn in each round, in a new order; ratios to dense adapters of the same
widths are taken within a round. That all of them compute the same is checked before.

- ``authors``: as the paper's code, https://github.com/rabeehk/compacter. In every projection a
  product of S and R, n Kronecker terms of full size, their sum, a product with it, a bias.
- ``one by one``: every H by itself, without the n terms; bias and sum ride on the products.
- ``three stages``: no H. The pieces of x meet S, then the rule, then R.
- ``batched``: one product makes every H of a step, as the package does it on a GPU.
- ``in factors``: one product makes all that meets the rule, and no H, as the package does it on a
  CPU where that halves the multiplications.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from lightning_pelt.benchmark.race import Ratio, ratio
from lightning_pelt.bottleneck import Dense, Projections, extend
from lightning_pelt.forge import in_factors, whole
from lightning_pelt.kronecker import Factors, Rule

DENSE = "dense"
WARM_UP = 2
STD = 0.1  # of rule and biases: at the tiny start of training a wrong product would not show


class Chain(nn.Module):
    """``count`` Compacter adapters in a row, (tokens, width) -> (tokens, width), in all ways."""

    def __init__(self, count: int, width: int, bottleneck: int, *, n: int, rank: int) -> None:
        super().__init__()
        kind = {"n": n, "rank": rank, "own": None}
        self.rule = Rule(n, std=STD, learned=True)
        self.down = Factors(count, width, bottleneck, **kind)  # type: ignore[arg-type]
        self.up = Factors(count, bottleneck, width, **kind)  # type: ignore[arg-type]
        self.bias = nn.Parameter(STD * torch.randn(count, bottleneck))
        self.out = nn.Parameter(STD * torch.randn(count, width))
        self.dense = nn.ModuleList(
            nn.ParameterList(tensor.detach().clone() for tensor in one)
            for one in whole(*self._all())
        )
        self.ways: dict[str, Callable[[Tensor], Tensor]] = {
            DENSE: lambda x: _through(x, (Dense(*one.parameters()) for one in self.dense)),
            "authors": self._authors,
            "one by one": self._one_by_one,
            "three stages": self._three_stages,
            "batched": lambda x: _through(x, whole(*self._all())),
            "in factors": lambda x: _through(x, in_factors(*self._all())),
        }

    def _all(self) -> tuple[Factors, Factors, Tensor, Tensor, Tensor]:
        return self.down, self.up, self.rule.A, self.bias, self.out

    def _each(self) -> Iterable[tuple[Tensor, ...]]:
        """S and R down, bias, S and R up, bias, of each adapter."""
        return zip(
            *(self.down.S, self.down.R, self.bias, self.up.S, self.up.R, self.out), strict=True
        )

    def _authors(self, x: Tensor) -> Tensor:
        for S, R, bias, S_up, R_up, out in self._each():
            z = torch.matmul(x, self._terms(torch.bmm(S, R))) + bias
            z = F.gelu(z, approximate="tanh")
            x = x + (torch.matmul(z, self._terms(torch.bmm(S_up, R_up))) + out)
        return x

    def _terms(self, blocks: Tensor) -> Tensor:
        """blocks (n, K, D) -> H (n K, n D)."""
        terms = torch.einsum("iac,ipq->iapcq", self.rule.A, blocks)
        return terms.flatten(3).flatten(1, 2).sum(0)

    def _one_by_one(self, x: Tensor) -> Tensor:
        for S, R, bias, S_up, R_up, out in self._each():
            W = torch.einsum("iac,ipq->cqap", self.rule.A, S @ R).flatten(2).flatten(0, 1)
            V = torch.einsum("iac,ipq->apcq", self.rule.A, S_up @ R_up).flatten(2).flatten(0, 1)
            x = _through(x, [Dense(W, bias, torch.cat([V, out[None]]))])
        return x

    def _three_stages(self, x: Tensor) -> Tensor:
        for S, R, bias, S_up, R_up, out in self._each():
            z = F.gelu(self._staged(x, S, R) + bias, approximate="tanh")
            x = x + (self._staged(z, S_up, R_up) + out)
        return x

    def _staged(self, x: Tensor, S: Tensor, R: Tensor) -> Tensor:
        """x (tokens, n K), S (n, K, r), R (n, r, D) -> (tokens, n D)."""
        n, _, rank = S.shape
        U = x.unflatten(-1, (n, -1)) @ S.transpose(0, 1).flatten(1)
        V = torch.einsum("tair,iac->tcir", U.unflatten(-1, (n, rank)), self.rule.A)
        return (V.flatten(-2) @ R.flatten(0, 1)).flatten(-2)


def _through(x: Tensor, adapters: Iterable[Projections]) -> Tensor:
    for adapter in adapters:
        x = extend(x, x, adapter, activation="gelu_new", gate=None)
    return x


def check(chain: Chain, x: Tensor) -> None:
    """Raise an ``AssertionError`` unless all ways agree, and in the gradient of x too."""
    found = {name: _values(way, x) for name, way in chain.ways.items()}
    for name, values in found.items():
        for own, expected in zip(values, found[DENSE], strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4, msg=name)


def _values(way: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    output = way(x)
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    return output.detach(), gradient


def measure(chain: Chain, x: Tensor, *, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of ``steps`` forward and backward passes: by way, of each round."""
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in chain.ways}
    for number in tqdm(range(WARM_UP + rounds), leave=False):
        for name in order.sample(list(chain.ways), len(chain.ways)):
            seconds = _turn(chain, chain.ways[name], x, steps)
            if number >= WARM_UP:
                times[name].append(seconds)
    return times


def _turn(chain: Chain, way: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> float:
    upstream = torch.ones_like(x)
    _wait(x)
    start = time.perf_counter()
    for _ in range(steps):
        way(x).backward(upstream)
        chain.zero_grad()
        x.grad = None
    _wait(x)
    return time.perf_counter() - start


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m lightning_pelt.benchmark.variants",
        description="Time of Compacter's adapters computed in different ways, over dense ones.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--adapters", type=int, default=8)
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--bottleneck", type=int, default=24)
    options.add_argument("--n", type=int, default=4, help="Kronecker terms")
    options.add_argument("--rank", type=int, default=1)
    options.add_argument("--tokens", type=int, default=1024, help="of a batch")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--steps", type=int, default=5, help="of a turn")
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=int, default=2)
    return options


def main(args: Sequence[str] | None = None) -> dict[str, Ratio]:
    """Measure, print and return each way's time over that of dense adapters."""
    given = parser().parse_args(args)
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    chain = Chain(given.adapters, given.width, given.bottleneck, n=given.n, rank=given.rank)
    chain = chain.to(given.device)
    x = torch.randn(given.tokens, given.width, device=given.device, requires_grad=True)
    check(chain, x)
    times = measure(chain, x, rounds=given.rounds, steps=given.steps)
    ratios = {name: ratio(seconds, times[DENSE]) for name, seconds in times.items()}
    print(
        f"{given.adapters} adapters {given.width} -> {given.bottleneck}, n={given.n}, "
        f"rank={given.rank}, {given.tokens} tokens, fp32, {given.device}, {given.threads} threads"
    )
    for name, r in ratios.items():
        print(f"{name:12}  {r.median:.2f} [{r.low:.2f}, {r.high:.2f}] of dense, min {r.least:.2f}")
    return ratios


if __name__ == "__main__":
    main()
