"""New tokens: trained rows of the word embeddings, beside a frozen table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_pelt.anatomy import Anatomy, Site
from lightning_pelt.anatomy.embeddings import EMBEDDING, UNTIED, embedding_scale
from lightning_pelt.methods._no_resizing import NoResizing
from lightning_pelt.methods._ops import cast
from lightning_pelt.methods.base import Cost, Method, Part, Place
from lightning_pelt.methods.gate import Gate
from lightning_pelt.methods.submodule import Removable, Submodule, refer

RESIZE = (
    "call tokenizer.add_tokens([...]) and model.resize_token_embeddings(len(tokenizer)) before "
    "attaching or loading; for PELTModule, save the resized model and its tokenizer in a folder, "
    "and give that as backbone"
)


@dataclass(frozen=True)
class NewTokens(Method):
    """Trained embeddings of chosen tokens, such as those added to the tokenizer.

    The rows of the tokens are trained and saved, and the rest of the table stays frozen: it gets
    neither gradients nor states of the optimizer, and no copy of it is made. The rows start as
    those of the base, which ``resize_token_embeddings`` has drawn or which were set before, and
    take their place where the model looks words up. A tied output projection gets the same rows; an
    untied one gets its own, which are trained too. Biases of the projection stay as they are.

    A file of adapters holds the rows and the ids, and is loaded into a base of which the table has
    been resized too; how its new rows were drawn does not matter. ``merge`` writes the rows into
    the table.

    Args:
        tokens: ids of the tokens; or how many rows at the end of the table are new. Some tables are
            longer than the vocabulary of their tokenizer: then give ids.
        gate: must be None.
        name: of its parameter group and log lines.

    Raises:
        ValueError: no token, a negative or repeated id, or a gate. In ``attach``, the model has no
            word embeddings, or fewer rows.

    Example:
        >>> from lightning_pelt import LoRA, NewTokens, Plan, attach
        >>> from lightning_pelt.testing import tiny_llama
        >>> model = tiny_llama()
        >>> rows = model.get_input_embeddings().num_embeddings
        >>> _ = model.resize_token_embeddings(rows + 2)
        >>> attachment = attach(model, Plan.uniform(LoRA(), NewTokens([rows, rows + 1])))
        >>> attachment.counts["new_tokens"].trained  # two tables: this projection is not tied
        128
    """

    tokens: int | Sequence[int] = 1
    gate: Gate | None = None
    name: str = "new_tokens"

    mergeable = True
    weight_decay = False  # a row of zeros is no neutral word

    def __post_init__(self) -> None:
        if self.gate is not None:
            raise ValueError(
                "NewTokens(gate=...) cannot be gated: a new token has no other embedding that a "
                "closed gate could leave. Gate the other methods of the plan"
            )
        ids = [self.tokens] if isinstance(self.tokens, int) else list(self.tokens)
        least = 1 if isinstance(self.tokens, int) else 0
        if not ids or min(ids) < least or len(set(ids)) < len(ids):
            raise ValueError(
                f"NewTokens has tokens={self.tokens!r}, expected different ids of at least 0, such "
                "as tokenizer.convert_tokens_to_ids([...]), or a number of rows of at least 1"
            )

    def replaced_rows(self, count: int) -> frozenset[int]:
        return frozenset(self._ids(count))

    def _ids(self, count: int) -> list[int]:
        """The ids in ascending order, in a table with ``count`` rows.

        Raises:
            ValueError: the table has fewer rows.
        """
        if isinstance(self.tokens, int):
            ids = list(range(count - self.tokens, count))
        else:
            ids = sorted(self.tokens)
        if ids[0] < 0 or ids[-1] >= count:
            raise ValueError(
                f"NewTokens(tokens={self.tokens!r}) needs a row for each token, and the embeddings "
                f"have {count}: {RESIZE}"
            )
        return ids

    def where(self, anatomy: Anatomy) -> list[Site]:
        tables = [site for site in anatomy.embeddings if site.role == EMBEDDING]
        if not tables:
            raise ValueError(
                f"{anatomy.model_type} has no table of word embeddings, of which NewTokens trains "
                "rows: leave it out of the plan"
            )
        self._ids(tables[0].d_in)
        return list(anatomy.embeddings)

    def size(self, site: Site) -> str:
        return f"n={self.tokens if isinstance(self.tokens, int) else len(self.tokens)}"

    def cost(self, sites: Sequence[Site]) -> Cost:
        count = self.tokens if isinstance(self.tokens, int) else len(self.tokens)
        return Cost(count * sum(site.source.width for site in _tables(sites)), 0)

    def build_shared(self, anatomy: Anatomy, sites: Sequence[Site]) -> list[Part]:
        parts = []
        for site in _tables(sites):
            ids = self._ids(site.d_in if site.role == EMBEDDING else site.d_out)
            parts.append(Part("", f"{self.name}_{_table(site)}", TokenRows(self.name, ids, site)))
        return parts

    def build(self, place: Place) -> list[Part]:
        parts = []
        for site in place.sites:
            rows = place.shared[f"{self.name}_{_table(site)}"]
            kind = Lookup if site.role == EMBEDDING else Projection
            parts.append(Part(site.path, self.name, kind(site, rows)))
        return parts


def _table(site: Site) -> str:
    """Which table a site reads: an untied projection has its own."""
    return "output" if site.role == UNTIED else "input"


def _tables(sites: Sequence[Site]) -> list[Site]:
    """One site for each table."""
    tables: dict[str, Site] = {}
    for site in sites:
        tables.setdefault(_table(site), site)
    return [*tables.values()]


class TokenRows(Submodule):
    """The trained rows W (n, d) of one table, in ascending order of their tokens (n,)."""

    tokens: Tensor
    table: nn.Module

    def __init__(self, name: str, ids: Sequence[int], site: Site) -> None:
        super().__init__()
        self.name, self.path = name, site.path
        self.W = nn.Parameter(torch.zeros(len(ids), site.source.width))
        self.register_buffer("tokens", torch.tensor(ids))

    def install(self, model: nn.Module) -> list[Removable]:
        refer(self, table=model.get_submodule(self.path))
        self._refuse_extraordinary()
        with torch.no_grad():
            self.W.copy_(self.rows_of_base())
        return [NoResizing(model, self.name)]

    def rows_of_base(self) -> Tensor:
        """The rows of the frozen table, (n, d)."""
        weight: Any = self.table.weight
        return weight.detach()[self.tokens.to(weight.device)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the rows change: of embeddings for ids x (...), of logits for states x (..., d).

        Both through the call of one module, in whose hooks sharding strategies gather the rows.

        Returns:
            For ids, their rows (..., d), and whether they have one (..., 1). For states, the change
            of the logits (..., n), and of which tokens (n,).
        """
        if x.is_floating_point():
            change = self.W - self.rows_of_base().to(self.W)
            return F.linear(x, cast(change, x.dtype)), self.tokens
        ids = cast(x, self.tokens.dtype)
        place = torch.searchsorted(self.tokens, ids).clamp(max=len(self.tokens) - 1)
        return F.embedding(place, self.W), (self.tokens[place] == ids).unsqueeze(-1)

    def _refuse_extraordinary(self) -> None:
        weight: Any = self.table.weight
        if type(weight.data) is not Tensor or not weight.is_floating_point():
            raise ValueError(
                f"{self.path} ({type(self.table).__name__}) is quantised or sharded, so that "
                f"{self.name!r} cannot read or write rows of it: load it in full precision"
            )

    @torch.no_grad()
    def write(self) -> None:
        self._refuse_extraordinary()
        weight: Any = self.table.weight
        weight.data[self.tokens.to(weight.device)] = self.W.to(weight.device, weight.dtype)

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        given, errors = state.get(f"{prefix}tokens"), args[-1]
        if given is not None and not torch.equal(given.cpu(), self.tokens.cpu()):
            errors.append(
                f"{prefix}W has the rows of the tokens {_few(given)} there, and of "
                f"{_few(self.tokens)} here: {RESIZE}"
            )
            return
        super()._load_from_state_dict(state, prefix, *args)


def _few(tokens: Tensor) -> str:
    ids = [str(token) for token in tokens.tolist()]
    return ", ".join(ids if len(ids) < 5 else [*ids[:2], "...", ids[-1]])


class Lookup(Submodule):
    """Puts trained rows into the output of an embedding."""

    rows: TokenRows

    def __init__(self, site: Site, rows: Submodule) -> None:
        super().__init__()
        self.site = site
        refer(self, rows=rows)

    def install(self, model: nn.Module) -> list[Removable]:
        host = model.get_submodule(self.site.path)
        self.scale = embedding_scale(host)
        # Before what other methods add to the output.
        return [host.register_forward_hook(self._replace, with_kwargs=True, prepend=True)]

    def _replace(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        return self(output, args[0] if args else next(iter(kwargs.values())))

    def forward(self, output: Tensor, ids: Tensor) -> Tensor:
        """output (..., d), ids (...) -> (..., d)."""
        rows, trained = self.rows(ids)
        rows = rows if self.scale == 1 else self.scale * rows
        return torch.where(trained, rows.to(output.dtype), output)


class Projection(Submodule):
    """Adds to the logits of the tokens what their trained rows have more than the frozen ones."""

    rows: TokenRows

    def __init__(self, site: Site, rows: Submodule) -> None:
        super().__init__()
        self.site = site
        refer(self, rows=rows)

    def install(self, model: nn.Module) -> list[Removable]:
        host = model.get_submodule(self.site.path)
        return [host.register_forward_hook(self._add, prepend=True)]

    def _add(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return self(output, args[0])

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (..., vocabulary), h (..., d) -> (..., vocabulary)."""
        change, tokens = self.rows(h)
        # In place: the logits are the largest tensor of a language model.
        return output.index_add_(-1, tokens, cast(change, output.dtype))
