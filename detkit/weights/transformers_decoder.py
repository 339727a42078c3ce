"""What transformers' DETRs do that DETR does not: where they normalize and where they drop out."""

from collections.abc import Iterable
from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from detkit.layers import ConditionalDecoder, TransformerDecoder


class DroppedProjection(nn.Conv2d):
    """A 1 x 1 convolution, then dropout: transformers applies dropout to the encoder's input, which DETR does not.

    >>> DroppedProjection(8, 4, dropout=0.1)
    DroppedProjection(8, 4, kernel_size=(1, 1), stride=(1, 1))
    """

    def __init__(self, in_channels: int, out_channels: int, *, dropout: float) -> None:
        super().__init__(in_channels, out_channels, 1)
        self.dropout = dropout

    def forward(self, input: Float[Tensor, "B D H W"]) -> Float[Tensor, "B E H W"]:
        """The projected cells, with dropout in training mode."""
        return F.dropout(super().forward(input), self.dropout, self.training)


class _AuxiliaryOutputs:
    """What ``auxiliary_loss`` does to a decoder, in front of its class.

    Without it, only the last output is returned, so only that one has a loss. With it, every layer starts from the
    normalized output of the previous layer, and the last output is normalized twice.
    """

    auxiliary = False

    def forward(self, embeddings: Tensor, memory: Tensor, **rules: Any) -> list[Tensor]:
        """The normalized outputs that the loss uses; the last one is the output of the decoder."""
        decoder: Any = super()
        outputs = decoder.forward(embeddings, memory, **rules)
        return [*outputs[:-1], cast(Any, self).norm(outputs[-1])] if self.auxiliary else outputs[-1:]

    def _handed_on(self, embeddings: Tensor, normalized: Tensor) -> Tensor:
        return normalized if self.auxiliary else embeddings


class TransformersDecoder(_AuxiliaryOutputs, TransformerDecoder):
    """DETR's decoder as transformers implements it, with its ``auxiliary_loss`` as the attribute ``auxiliary``.

    >>> from detkit.layers import DecoderLayer
    >>> TransformersDecoder([DecoderLayer(8, 2, hidden=16)], norm=nn.LayerNorm(8)).auxiliary
    False
    """


class TransformersConditionalDecoder(_AuxiliaryOutputs, ConditionalDecoder):
    """Conditional DETR's, likewise.

    >>> from detkit.layers import ConditionalDecoderLayer
    >>> parts = {"points": nn.Linear(8, 2), "scale": nn.Linear(8, 8), "norm": nn.LayerNorm(8)}
    >>> TransformersConditionalDecoder([ConditionalDecoderLayer(8, 2, hidden=16)], **parts).auxiliary
    False
    """


def set_dropout(layers: Iterable[nn.Module], config: Any) -> None:
    """Sets the three dropout rates of transformers in layers of attention.

    >>> from types import SimpleNamespace
    >>> from detkit.layers import EncoderLayer
    >>> layer = EncoderLayer(8, 2, hidden=16)
    >>> set_dropout([layer], SimpleNamespace(dropout=0.1, attention_dropout=0.2, activation_dropout=0.3))
    >>> layer.attention.dropout, layer.feed_forward.dropout
    (0.2, Dropout(p=0.3, inplace=False))
    """
    for layer in layers:
        for name, part in layer.named_children():
            if name.endswith("attention"):
                cast(Any, part).dropout = config.attention_dropout
            else:
                rate = config.activation_dropout if name == "feed_forward" else config.dropout
                cast(Any, part).dropout.p = rate
