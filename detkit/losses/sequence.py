"""The loss of Pix2Seq: next-token prediction."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import finite_logits, promote
from detkit.boxes import TokenCoder
from detkit.dist import all_reduce_mean
from detkit.losses.dense import or_one
from detkit.structures.labels import check_labels, check_weights


class SequenceLoss(nn.Module):
    """Cross-entropy of the tokens, averaged with per-token weights: sum(weight * cost) / sum(weight).

    Both sums run over the whole batch; the second is averaged over processes. Source: Chen et al. 2022, "Pix2seq",
    equation 1. Raises ValueError if shapes disagree.

    >>> loss = SequenceLoss()(torch.zeros(1, 2, 4), torch.tensor([[3, 0]]), torch.tensor([[1.0, 0.1]]))
    >>> round(float(loss["tokens"]), 4)
    1.3863
    """

    @door
    def forward(
        self,
        logits: Float[Tensor, "B L V"],
        tokens: Int[Tensor, "B L"],
        weights: Float[Tensor, "B L"],
    ) -> dict[str, Float[Tensor, ""]]:
        """Loss "tokens" of ``logits`` (B, L, V) against the target ``tokens`` (B, L), with their ``weights``.

        Tokens of weight 0 do not count, whatever their logits. Half precision is promoted. A batch of total weight 0
        has loss 0.
        """
        shapes = [tuple(given.shape) for given in (tokens, weights)]
        if any(shape != logits.shape[:2] for shape in shapes):
            raise ValueError(
                f"SequenceLoss: logits {tuple(logits.shape)}, tokens and weights {shapes}; "
                "allowed is (B, L, V) and (B, L) each"
            )
        check_weights(weights, function="SequenceLoss")
        counted, logits = weights > 0, promote(logits)
        tokens = torch.where(counted, tokens, 0)
        check_labels(tokens, logits.shape[-1], lowest=0, function="SequenceLoss", name="tokens")
        weights = weights.to(logits)
        # A NaN at a token that counts for nothing must reach neither loss nor gradient.
        logits = torch.where(counted[..., None], logits, 0)
        costs = -logits.log_softmax(-1).gather(2, tokens[..., None]).squeeze(2)
        total = all_reduce_mean(weights.sum())
        return {"tokens": (costs * weights).sum() / or_one(total)}

    @door
    def scores(self, logits: Float[Tensor, "*B V"], coder: TokenCoder) -> Float[Tensor, "*B C"]:
        """Probabilities (..., C) of ``coder``'s class tokens among all tokens, from logits (..., V) at a class token.

        Probability of noise and end tokens is not given to the classes, so that a row of noise scores low.

        >>> SequenceLoss().scores(torch.zeros(1, 8), TokenCoder(2, bins=3, vocabulary="paper"))
        tensor([[0.1250, 0.1250]])
        """
        first = coder.first_class
        return finite_logits(promote(logits)).softmax(-1)[..., first : first + coder.num_classes]
