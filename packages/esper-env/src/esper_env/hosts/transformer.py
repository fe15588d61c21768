"""A small causal Transformer that predicts the next token, with a slot behind each group of layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from esper_env.checks import Interval, check_fields, check_value
from esper_env.hosts.attention import CausalSelfAttention
from esper_env.hosts.protocol import SegmentedHost, SlotSpec, in_action_order
from esper_env.tasks.config import TransformerSpec


class TokenEmbedding(nn.Module):
    """Sum of token and position embeddings: (B, T) tokens -> (B, T, width)."""

    def __init__(self, vocab: int, width: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, width)
        self.positions = nn.Embedding(context, width)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.tokens(tokens)
        return embedded + self.positions.weight[: tokens.shape[-1]]


class TiedHead(nn.Module):
    """Output tied to the embedding (Press and Wolf 2017): (B, T, width) -> (B, T, vocab) logits."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight

    @override
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Residual(nn.Module):
    """A branch with a skip connection: x + branch(x)."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    @override
    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        return x + branch


def transformer_layer(width: int, heads: int, expansion: int) -> nn.Sequential:
    """Build a pre-norm layer (Xiong et al. 2020): attention, then ``expansion * width`` GELU units, if any."""
    inner = expansion * width
    attention = Residual(nn.LayerNorm(width), CausalSelfAttention(width, heads))
    if not inner:
        return nn.Sequential(attention)
    return nn.Sequential(
        attention, Residual(nn.LayerNorm(width), nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
    )


class TransformerHost(SegmentedHost):
    """A causal Transformer with pre-norm layers and an output tied to the embedding.

    The layers are cut into ``segments`` groups of equal length, with one slot behind each: r0c0, r0c1, ... Input is
    (B, T) tokens, T at most ``context``. Output is (B, T, vocab) logits of the token that follows each position.

    ``vocab`` is the number of tokens. ``slots`` are the ids of the slots to keep; None keeps all.
    ``esper_env.TransformerSpec`` describes the other arguments.

    Raises:
        ValueError: a number is out of its range, ``segments`` does not divide ``layers``, ``heads`` does not divide
            ``width``, or a slot id is unknown.
    """

    topology = "transformer"

    def __init__(
        self,
        vocab: int,
        width: int,
        heads: int,
        layers: int,
        context: int,
        segments: int,
        *,
        expansion: int = 4,
        slots: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        check_value("vocab", vocab, Annotated[int, Interval(2)])
        sizes = {"width": width, "heads": heads, "layers": layers, "context": context, "segments": segments}
        check_fields(TransformerSpec, **sizes, expansion=expansion)
        _check_divisions(width, heads, layers, segments)
        embedding = TokenEmbedding(vocab, width, context)
        pieces: list[list[nn.Module]] = [[embedding]]
        placed: list[SlotSpec] = []
        for group in range(segments):
            pieces[-1] += [transformer_layer(width, heads, expansion) for _ in range(layers // segments)]
            spec = SlotSpec(f"r0c{group}", width, "post-layers", 0, group, -1, (context, width))
            if slots is None or spec.slot_id in slots:
                placed.append(spec)
                pieces.append([])
        pieces[-1] += [nn.LayerNorm(width), TiedHead(embedding.tokens)]
        self.segments = nn.ModuleList(nn.Sequential(*piece) for piece in pieces)
        self.slots, self.execution_order = in_action_order(placed, slots)


def _check_divisions(width: int, heads: int, layers: int, segments: int) -> None:
    if width % heads:
        raise ValueError(f"width is {width}, which {heads} heads do not divide; choose a multiple of heads")
    if layers % segments:
        raise ValueError(f"layers is {layers}, which {segments} segments do not divide; choose a multiple of segments")
