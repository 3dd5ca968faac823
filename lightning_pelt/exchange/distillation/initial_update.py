"""The first guess of a LoRA: least squares on what a plan does to each linear layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.anatomy import Anatomy
from lightning_pelt.attach import Attachment
from lightning_pelt.exchange.distillation.hidden_states import without_prompt
from lightning_pelt.exchange.distillation.unlabelled_rows import Batch, on, real

RIDGE = 1e-2  # of the mean square of the inputs
SMALLEST = 1e-5  # relative change of an output that counts as none
SPARE = 8  # columns beyond the rank, for the accuracy of a randomised decomposition


class Factors(NamedTuple):
    """The low-rank update of one site: views of its parameters.

    Attributes:
        path: of the linear layer.
        rows: of its output that belong to the site, (d_out,); None for all.
        down: A (r, d_in).
        up: B (d_out, r).
    """

    path: str
    rows: Tensor | None
    down: Tensor
    up: Tensor

    def put(self, down: Tensor, up: Tensor) -> None:
        """Write A (r, d_in) and B (d_out, r). Zero pairs stay at their initial values.

        A pair of zeros would have no gradient.
        """
        used = (down.norm(dim=1) > 0) & (up.norm(dim=0) > 0)
        self.down[used] = down[used].to(self.down)
        self.up[:, used] = up[:, used].to(self.up)


@torch.no_grad()
def factors_of(attachment: Attachment) -> list[Factors]:
    """The updates of the sites of an attached plan of one ungated LoRA of scale 1."""
    found = []
    ups: list[Any] = [m for m in attachment.all_submodules if hasattr(m, "down")]
    for module in ups:
        downs = module.down.A.detach().unflatten(0, (-1, module.rank))
        for key, rows, index in zip(module.keys, module.output_rows, module.indices, strict=True):
            up = getattr(module, f"B_{key}").detach()
            found.append(Factors(module.path, rows.rows, downs[index], up))
    return found


def best_pair(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest A (rank, d_in) and B (d_out, rank) with B A ~ ``delta`` (d_out, d_in).

    Both have the same norms. Draws from torch's generator.
    """
    left, sizes, right = _leading(delta, rank)
    root = sizes.sqrt()
    return (right * root).T, left * root


def _leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular vectors and values; directions without any effect are zero."""
    columns = min(rank + SPARE, *matrix.shape)
    left, sizes, right = torch.svd_lowrank(matrix, q=columns, niter=4)
    sizes = torch.where(sizes > SMALLEST * sizes[:1], sizes, 0.0)
    count = min(rank, columns)
    missing = (0, rank - count)
    return (
        F.pad(left[:, :count], missing),
        F.pad(sizes[:count], missing),
        F.pad(right[:, :count], missing),
    )


def reduced_rank(x: Tensor, y: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    r"""A (rank, d_in) and B (d_out, rank) that minimise :math:`|Y - X A^T B^T|^2`, with a ridge.

    Reduced-rank regression (Izenman, 1975; https://doi.org/10.1016/0047-259X(75)90042-1): the
    ordinary solution, projected on the leading directions of its own predictions.

    Args:
        x: (N, d_in).
        y: (N, d_out).
        rank: of the solution.

    Example:
        >>> x, a, b = torch.randn(50, 6), torch.randn(2, 6), torch.randn(4, 2)
        >>> A, B = reduced_rank(x, x @ a.T @ b.T, rank=2)
        >>> bool((B @ A - b @ a).norm() < 0.1 * (b @ a).norm())
        True
    """
    gram = x.T @ x
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    triangle = torch.linalg.cholesky(gram)
    solution = torch.cholesky_solve(x.T @ y, triangle)  # (d_in, d_out)
    _, sizes, right = _leading(triangle.T @ solution, rank)
    directions = torch.where(sizes > 0, right, 0.0)
    return best_pair(directions @ (solution @ directions).T, rank)


class Points(NamedTuple):
    """Where the effect of a plan on the linear layers shows: at each layer, or after its dropout.

    Attributes:
        of: path of the module whose output is compared, by the path of the linear layer.
    """

    of: Mapping[str, str]

    @classmethod
    def in_model(cls, model: nn.Module, anatomy: Anatomy, paths: list[str]) -> Points:
        """Those of the linear layers at ``paths``.

        Adapters act on the output of a sublayer, which is that of its last linear layer or of the
        dropout after it.
        """
        of = {path: path for path in paths}
        for site in anatomy.sites:
            end = site.post_norm or site.residual
            if site.path in of and end is not None:
                module = model.get_submodule(end.output)
                of[site.path] = end.output if isinstance(module, nn.Dropout) else site.path
        return cls(of)


@torch.no_grad()
def fit_in_passing(
    student: Attachment, teacher: Attachment, factors: list[Factors], batch: Batch
) -> None:
    """Set the LoRA of ``student`` so that each layer reproduces what ``teacher`` does there.

    In one forward of the student, each layer is fitted when it is reached: its inputs are those
    that the fitted layers before it give, so that it also corrects their errors.
    """
    by_path: dict[str, list[Factors]] = {}
    for each in factors:
        by_path.setdefault(each.path, []).append(each)
    points = Points.in_model(teacher.model, teacher.anatomy, list(by_path))
    wanted = _record(teacher, points, on(teacher.model.device, batch))
    both = bool(getattr(student.model.config, "is_encoder_decoder", False))
    decoders = tuple(f"{s.path}." for s in student.anatomy.stacks if both and s.name == "decoder")

    def fit(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            target = wanted.get(path)
            values = output[0] if isinstance(output, tuple) else output
            if target is None or not args or not isinstance(args[0], Tensor):
                return output
            mask = real(batch, values, decoder=path.startswith(decoders) if decoders else False)
            change = without_prompt(target.to(values.device), values) - values
            update = _fit(by_path[path], args[0], change, mask)
            wanted[path] = None  # a layer that runs again keeps its first fit
            return _plus(output, update.to(values.dtype))

        return hook

    with _hooked(student.model, {path: fit(path) for path in by_path}):
        student.model(**on(student.model.device, batch))


def _fit(sites: list[Factors], x: Tensor, change: Tensor, mask: Tensor | None) -> Tensor:
    """Fit the sites of one layer; returns their update (..., width)."""
    update = torch.zeros_like(change, dtype=torch.float32)
    inputs = x.float()
    for site in sites:
        y = change if site.rows is None else change[..., site.rows]
        rows = [t.float() if mask is None else t[mask].float() for t in (x, y)]
        flat_x, flat_y = (t.reshape(-1, t.shape[-1]) for t in rows)
        if flat_y.norm() <= SMALLEST * flat_x.norm():
            continue
        site.put(*reduced_rank(flat_x, flat_y, site.down.shape[0]))
        product = inputs @ site.down.float().T @ site.up.float().T
        if site.rows is None:
            update += product
        else:
            update.index_add_(-1, site.rows, product)
    return update


def _plus(output: Any, update: Tensor) -> Any:
    if isinstance(output, tuple):
        return (output[0] + update, *output[1:])
    return output + update


def _record(teacher: Attachment, points: Points, batch: Batch) -> dict[str, Tensor | None]:
    """The output of the teacher at each point, of its first run in a forward."""
    found: dict[str, Tensor | None] = {}

    def keep(path: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            found.setdefault(path, output[0] if isinstance(output, tuple) else output)

        return hook

    hosts: dict[str, Callable[..., Any]] = {host: keep(p) for p, host in points.of.items()}
    with _hooked(teacher.model, hosts):
        teacher.model(**batch)
    return found


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    handles = [model.get_submodule(p).register_forward_hook(hook) for p, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
