"""Implementations of Compacter's adapters: ``python -m lightning_pelt.benchmark.variants``.

The benchmark runs adapters alone, one after another, forward and backward, with gradients of their
input and of all weights. Each round times every implementation once, in a new random order; ratios
to dense adapters of the same widths compare times of the same round. All implementations are first
checked to compute the same values.

- ``authors``: the code of the paper, https://github.com/rabeehk/compacter. Each projection computes
  S R, n Kronecker products of full size, their sum H, the product with H, and a bias.
- ``one by one``: H of each adapter separately, without n full-size products; bias and sum are part
  of the matrix products.
- ``three stages``: H is not computed. The pieces of x are multiplied with S, the rule, and R.
- ``batched``: one product computes H of all adapters, as the package does on a GPU.
- ``in factors``: one product computes everything that is multiplied with the rule, without H, as
  the package does on a CPU if that halves the multiplications.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor, nn
from tqdm import tqdm

from lightning_pelt.benchmark.measure import Ratio, ratio
from lightning_pelt.methods._bottleneck import Dense, ProjectionPair, extend
from lightning_pelt.methods._kronecker import Factors, Rule
from lightning_pelt.methods._stacked_bottlenecks import in_factors, whole

DENSE = "dense"
WARM_UP = 2
STD = 0.1  # of rule and biases; at the smaller init of training a wrong product would not show


class Chain(nn.Module):
    """``count`` Compacter adapters in sequence, in all implementations.

    Each implementation maps (tokens, width) to (tokens, width).
    """

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
        self.variants: dict[str, Callable[[Tensor], Tensor]] = {
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
        """S, R and bias of the down-projection, then of the up-projection, for each adapter."""
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


def _through(x: Tensor, adapters: Iterable[ProjectionPair]) -> Tensor:
    for adapter in adapters:
        x = extend(x, x, adapter, activation="gelu_new", gate=None)
    return x


def check(chain: Chain, x: Tensor) -> None:
    """Raise an ``AssertionError`` if outputs or gradients of x differ between implementations."""
    found = {name: _values(variant, x) for name, variant in chain.variants.items()}
    for name, values in found.items():
        for own, expected in zip(values, found[DENSE], strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4, msg=name)


def _values(variant: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    output = variant(x)
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    return output.detach(), gradient


def measure(chain: Chain, x: Tensor, *, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of ``steps`` forward and backward passes in each round, by implementation."""
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in chain.variants}
    for number in tqdm(range(WARM_UP + rounds), leave=False):
        for name in order.sample(list(chain.variants), len(chain.variants)):
            seconds = _time_steps(chain, chain.variants[name], x, steps)
            if number >= WARM_UP:
                times[name].append(seconds)
    return times


def _time_steps(chain: Chain, variant: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> float:
    upstream = torch.ones_like(x)
    _synchronize(x)
    start = time.perf_counter()
    for _ in range(steps):
        variant(x).backward(upstream)
        chain.zero_grad()
        x.grad = None
    _synchronize(x)
    return time.perf_counter() - start


def _synchronize(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def compare(
    adapters: int = 8,
    width: int = 768,
    bottleneck: int = 24,
    n: int = 4,
    rank: int = 1,
    tokens: int = 1024,
    rounds: int = 15,
    steps: int = 5,
    device: str = "cpu",
    threads: int = 2,
) -> dict[str, Ratio]:
    """Print the time of each implementation of Compacter's adapters over that of dense adapters.

    Args:
        adapters: number of adapters.
        width: input and output width of an adapter.
        bottleneck: width of the bottleneck.
        n: Kronecker terms.
        rank: rank of the factors.
        tokens: tokens of a batch.
        rounds: measurements of each implementation.
        steps: forward and backward passes of a measurement.
        device: device of the adapters.
        threads: CPU threads of torch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    chain = Chain(adapters, width, bottleneck, n=n, rank=rank).to(device)
    x = torch.randn(tokens, width, device=device, requires_grad=True)
    check(chain, x)
    times = measure(chain, x, rounds=rounds, steps=steps)
    ratios = {name: ratio(seconds, times[DENSE]) for name, seconds in times.items()}
    print(
        f"{adapters} adapters {width} -> {bottleneck}, n={n}, rank={rank}, {tokens} tokens, fp32, "
        f"{device}, {threads} threads"
    )
    for name, r in ratios.items():
        print(f"{name:12}  {r.median:.2f} [{r.low:.2f}, {r.high:.2f}] of dense, min {r.least:.2f}")
    return ratios


def main(args: Sequence[str] | None = None) -> dict[str, Ratio]:
    """Run :func:`compare` with options of the command line."""
    prog = "python -m lightning_pelt.benchmark.variants"
    return auto_cli(compare, None if args is None else list(args), as_positional=False, prog=prog)


if __name__ == "__main__":
    main()
