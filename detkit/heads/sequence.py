"""How a sequence head picks its next token: the sampling rule, and the grammar of tokens that form valid boxes."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._inputs import finite_logits, promote
from detkit._noise import uniform_like
from detkit._ranges import Fraction, Positive
from detkit.boxes.tokens import TOKENS_PER_BOX, TokenCoder

Rule = Literal["argmax", "reference", "standard"]


class TokenSampler(nn.Module):
    """Samples one token from logits: the most likely one, or a random one of the ``top_p`` most likely.

    ``rule="argmax"`` takes the most likely token; ties go to the lower token. The other rules sample from the kept
    tokens in proportion to their probabilities at ``temperature``: ``"reference"`` keeps the most likely tokens whose
    sum is at most ``top_p``, at least one (the release of Pix2Seq); ``"standard"`` keeps the fewest whose sum reaches
    ``top_p`` (Holtzman et al. 2020). Raises ValueError for another rule, ``top_p`` outside [0, 1], or a temperature
    that is not positive.
    Source: Chen et al. 2022, "Pix2seq", section 2.2.

    >>> TokenSampler("argmax")(torch.tensor([[0.1, 2.0, 0.3]]))
    tensor([1])
    """

    @door
    def __init__(self, rule: Rule = "reference", *, top_p: Fraction = 0.4, temperature: Positive = 1.0) -> None:
        super().__init__()
        if rule not in ("argmax", "reference", "standard"):
            raise ValueError(f"TokenSampler: rule={rule!r}; allowed is 'argmax', 'reference' or 'standard'")
        self.rule: Rule = rule
        self.top_p, self.temperature = top_p, temperature

    @door
    @torch.no_grad()
    def forward(
        self,
        logits: Float[Tensor, "*B V"],
        allowed: Bool[Tensor, "*#B V"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "*B"]:
        """A token (...) for each row of ``logits`` (..., V), chosen only where ``allowed`` (..., V) is True.

        At least one token must be allowed. NaN counts as the lowest logit, so that even a diverged network yields an
        allowed token. The same ``generator`` state gives the same choice; under fullgraph compilation it must be None.
        """
        logits = finite_logits(promote(logits))
        logits = logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)
        if self.rule == "argmax":
            return logits.argmax(-1)
        probabilities = (logits / self.temperature).softmax(-1)
        kept = top_p_tokens(probabilities, self.top_p, rule=self.rule)
        lots = uniform_like(probabilities, generator)
        # Of independent exponential clocks, each at its token's rate, the first to ring is that token's in proportion.
        return torch.where(kept, probabilities / -torch.log1p(-lots).clamp(max=-1e-30), -1).argmax(-1)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"{self.rule!r}" + (
            f", top_p={self.top_p}, temperature={self.temperature}" if self.rule != "argmax" else ""
        )


class BoxGrammar(nn.Module):
    """Masks the next token so that every five tokens form a box of ``coder`` with x2 >= x1, y2 >= y1, and a class.

    >>> grammar = BoxGrammar(TokenCoder(2, bins=3, vocabulary="paper"))
    >>> grammar(3, torch.tensor([[1, 2, 3]])).int()  # xmax after xmin = 2
    tensor([[0, 0, 1, 1, 0, 0, 0, 0]], dtype=torch.int32)
    """

    def __init__(self, coder: TokenCoder) -> None:
        super().__init__()
        self.coder = coder

    @door
    def forward(self, position: int, tokens: Int[Tensor, "B L"]) -> Bool[Tensor, "B V"]:
        """A mask, True for each token allowed at ``position`` of a sequence after ``tokens`` (B, L), L >= position."""
        vocabulary = torch.arange(self.coder.size, device=tokens.device).expand(tokens.shape[0], -1)
        place = position % TOKENS_PER_BOX
        if place == TOKENS_PER_BOX - 1:
            first, count = self.coder.first_class, self.coder.num_classes
            return (vocabulary >= first) & (vocabulary < first + count)
        first = self.coder.first_coordinate
        coordinates = (vocabulary >= first) & (vocabulary < first + self.coder.bins)
        return coordinates if place < 2 else coordinates & (vocabulary >= tokens[:, position - 2, None])


def top_p_tokens(
    probabilities: Float[Tensor, "*B V"], top_p: float, *, rule: Literal["reference", "standard"] = "reference"
) -> Bool[Tensor, "*B V"]:
    """A mask, True for each token to keep: see :class:`TokenSampler`; ties go to the lower token.

    >>> probabilities = torch.tensor([0.15, 0.5, 0.05, 0.3])
    >>> top_p_tokens(probabilities, 0.9), top_p_tokens(probabilities, 0.9, rule="standard")
    (tensor([False,  True, False,  True]), tensor([ True,  True, False,  True]))
    """
    ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
    reached = ranked.cumsum(-1)
    kept = reached <= top_p if rule == "reference" else reached.roll(1, dims=-1) < top_p
    kept = kept | (torch.arange(kept.shape[-1], device=kept.device) == 0)
    return torch.zeros_like(kept).scatter(-1, order, kept)
