"""Bottleneck adapters: a small two-layer network after, or parallel to, a sublayer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_pelt.anatomy import Site
from lightning_pelt.methods._bottleneck import BottleneckMethod, Dense, extend
from lightning_pelt.methods._kept import KeepingModule
from lightning_pelt.methods._rows import DenseByRow, Rows
from lightning_pelt.methods._sublayer_hooks import Placement, hook_sublayer
from lightning_pelt.methods.base import Cost, Part, Place
from lightning_pelt.methods.gate import Gate, GateView


@dataclass(frozen=True)
class Adapter(BottleneckMethod):
    r"""Bottleneck adapter, :math:`z = f + s\, g\, (W_{up}\,\phi(W_{down} h + b_{down}) + b_{up})`
    (Houlsby et al., 2019; https://arxiv.org/abs/1902.00751).

    Let ``f`` be the sublayer's output, and ``a`` the residual stream before the sublayer and before
    its norm. The block continues with ``z + a``. The placements differ in ``h``:

    - ``sequential``: ``h = f``, as Houlsby et al.
    - ``parallel``: ``h`` is the sublayer's input, in a pre-norm block the normed one, as by default
      in the code of He et al. (2022; https://arxiv.org/abs/2110.04366).
    - ``pfeiffer``: ``h`` is the stream after the sublayer, as in AdapterHub's ``seq_bn``. In a
      post-norm block ``h = LN(f + a)``, and the norm runs a second time, over ``z + a``, as in the
      code of Pfeiffer et al. In a pre-norm block ``h = f + a``.
    - ``he``: ``h = a``, as in AdapterHub's ``par_bn``. In a post-norm block this is ``parallel``,
      in a pre-norm block it is the option ``hi_lnbefore=1`` of He et al.
    - ``unipelt``: ``pfeiffer`` for post-norm blocks only, as in the code of UniPELT.
    - ``auto``: ``pfeiffer`` in post-norm blocks, ``sequential`` in others.

    =========  ===================================================================  ==============
    block      families                                                             ``auto``
    =========  ===================================================================  ==============
    post-norm  BERT, RoBERTa, XLM-R, ELECTRA, ALBERT, DeBERTa, DistilBERT, MPNet,   ``pfeiffer``
               BART, Marian, Wav2Vec2-base, HuBERT-base
    pre-norm   GPT-2, GPT-Neo, OPT, BLOOM, Llama, Mistral, Mixtral, Qwen, Gemma,    ``sequential``
               Phi-3, T5, mBART, Pegasus, Whisper, ViT, CLIP, ModernBERT
    parallel   GPT-J, GPT-NeoX, Phi, Falcon, Cohere: attention and feed-forward     ``sequential``
               have the same ``a``
    other      Gemma 2 and 3, OLMo 2, BEiT, DINOv2, Granite: a norm or a factor     ``sequential``
               comes before the sum, so that ``pfeiffer`` and ``he`` are refused
    =========  ===================================================================  ==============

    The scaled parallel adapter of He et al. is ``Adapter(placement="he", scale=4.0)``, with
    ``bottleneck=512`` in their mix-and-match adapter. Their code adds a parallel adapter of the
    attention before the output projection; here, as in AdapterHub, it is added after.

    Args:
        bottleneck: width of the bottleneck; by default the model's width divided by
            ``reduction_factor``.
        reduction_factor: see ``bottleneck``.
        sites: ``ffn``, ``attention``, ``cross_attention``.
        placement: see above.
        scale: the factor ``s``; 4 in the scaled parallel adapters of He et al.
        activation: ``relu``, ``gelu``, ``gelu_new`` (its tanh approximation), ``silu``, ``tanh``.
        init_std: standard deviation of both projections; biases start at 0.
        gate: None for ungated. It reads ``h``.
        name: of its parameter group, gates and log lines.

    Raises:
        ValueError: an unknown placement or activation, or a width or a scale that is not positive.

    Example:
        >>> from lightning_pelt import Adapter, Plan, attach
        >>> from lightning_pelt.testing import tiny_bert
        >>> plan = Plan.uniform(Adapter(bottleneck=4, sites=["attention", "ffn"]))
        >>> attach(tiny_bert(), plan).counts["adapter"].trained
        1168
    """

    bottleneck: int | None = None
    reduction_factor: int = 16
    sites: Sequence[str] = ("ffn",)
    placement: Placement = "auto"
    scale: float = 1.0
    activation: str = "relu"
    init_std: float = 0.02
    gate: Gate | None = None
    name: str = "adapter"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.scale < float("inf"):
            raise ValueError(
                f"Adapter has scale={self.scale}, expected a positive number: 4.0 as He et al., or "
                "1.0 for none"
            )

    def cost(self, sites: Sequence[Site]) -> Cost:
        reads = sum(self.reads(site) for site in sites)
        writes = sum(site.d_out for site in sites)
        return Cost(writes, reads + writes + len(sites))

    def build(self, place: Place) -> list[Part]:
        parts = []
        for site, gate in zip(place.sites, place.gates, strict=True):
            net = Bottleneck(self, site, gate)
            hooked = hook_sublayer(net, site, self.placement)
            parts.append(Part(hooked.host, f"{self.name}_{site.role}", hooked))
        return parts


class Bottleneck(KeepingModule):
    """Down-projection, activation and gated up-projection, added to the output."""

    def __init__(self, method: Adapter, site: Site, gate: GateView | None) -> None:
        super().__init__()
        width, d_in = method.width(site), method.reads(site)
        self.gate, self.method = gate, method
        self.stacked: DenseByRow | None = None
        self.down = nn.Parameter(torch.empty(width, d_in))
        self.down_bias = nn.Parameter(torch.zeros(width))
        self.up = nn.Parameter(torch.empty(site.d_out, width))
        self.up_bias = nn.Parameter(torch.zeros(site.d_out))
        nn.init.normal_(self.down, std=method.init_std)
        nn.init.normal_(self.up, std=method.init_std)

    def forward(self, output: Tensor, h: Tensor) -> Tensor:
        """output (B, T, d), h (B, T, d_in) -> (B, T, d)."""
        weights = self.weights() if self.stacked is None else self.stacked
        return extend(output, h, weights, activation=self.method.activation, gate=self.gate)

    def weights(self) -> Dense:
        """The projections, with the factor in the second."""
        given = (self.down, self.down_bias, self.up, self.up_bias)
        return self.kept.of(given, self._weights)

    def _weights(self) -> Dense:
        up = torch.cat([self.up.T, self.up_bias[None]])
        if self.method.scale != 1:
            up = up * self.method.scale
        return Dense(self.down, self.down_bias, up)

    def by_rows(self, others: Sequence[Bottleneck], rows: Rows) -> None:
        """See :meth:`~lightning_pelt.methods.submodule.Submodule.by_rows`."""
        W, bias, V = zip(*(other.weights() for other in others), strict=True)
        down = rows.stack([weight.mT for weight in W])
        self.stacked = DenseByRow(rows, down, rows.stack(bias), rows.stack(V))
