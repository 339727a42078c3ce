"""The Pix2Seq stage: detection as language modeling, with five tokens per object, generated one at a time."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from detkit._door import door
from detkit._ranking import stable_topk
from detkit.boxes.tokens import TOKENS_PER_BOX, TokenCoder
from detkit.detectors.detector import Stage
from detkit.detectors.sequence_targets import SequenceTargetBuilder, SequenceTargets
from detkit.heads.sequence import BoxGrammar, TokenSampler
from detkit.heads.token_decoder import TokenDecoder
from detkit.layers import Memory
from detkit.losses.sequence import SequenceLoss
from detkit.structures import Detections, Images, Targets, take_rows


class SequenceOutputs(NamedTuple):
    """Logits of every step, the predicted tokens, and in training the target sequences."""

    logits: Float[Tensor, "B L V"]
    tokens: Int[Tensor, "B L"]
    learned: SequenceTargets | None = None


class SequenceStage(Stage):
    """Wires an encoder, a token decoder, a coder, a loss and a sampler into Pix2Seq.

    ``encoder(features, images)`` returns a :class:`~detkit.layers.Memory`; ``decoder`` attends to it and predicts the
    next token; ``targets`` builds the target sequences, and ``criterion`` computes the loss. At inference ``sampler``
    generates exactly ``targets.max_objects`` objects; ``constrained`` restricts it to well-formed boxes
    (:class:`~detkit.heads.sequence.BoxGrammar`), otherwise rows that are no box are not valid. The label of an object
    is the likeliest class token at its position; its score is that token's probability among all tokens.
    Source: Chen et al. 2022, "Pix2seq", section 2.

    >>> from detkit.detectors import small_pix2seq
    >>> detector = small_pix2seq(num_classes=2, max_objects=3).eval()
    >>> detector([torch.zeros(3, 64, 64)])[0]["boxes"].shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        decoder: TokenDecoder,
        targets: SequenceTargetBuilder,
        criterion: SequenceLoss,
        sampler: TokenSampler,
        constrained: bool = True,
        branch: str | None = None,
    ) -> None:
        super().__init__(branch=branch)
        self.encoder, self.decoder, self.targets = encoder, decoder, targets
        self.criterion, self.sampler = criterion, sampler
        self.grammar = BoxGrammar(targets.coder) if constrained else None

    @property
    def coder(self) -> TokenCoder:
        """The coder that maps tokens to boxes and classes."""
        return self.targets.coder

    @door
    def forward(
        self, features: list[Tensor], images: Images, detections: Detections | None, targets: Targets | None = None
    ) -> SequenceOutputs:
        """With targets, the logits after each token of their sequences; without, sequences generated token by token."""
        memory = self.encoder(features, images)
        if targets is None:
            return self.generate(memory)
        learned = self.targets(targets, images.sizes)
        logits = self.decoder(learned.inputs, memory)
        return SequenceOutputs(logits, logits.detach().argmax(-1), learned)

    @door
    @torch.no_grad()
    def generate(self, memory: Memory, *, generator: torch.Generator | None = None) -> SequenceOutputs:
        """Generates 5 * max_objects tokens for each image of ``memory``; no gradient flows.

        Logits are those of the network: the grammar only sets the sampling probability of forbidden tokens to 0.
        """
        images, caches = memory.cells.shape[0], self.decoder.start(memory)
        token = torch.full((images,), self.coder.start, device=memory.cells.device)
        tokens, logits = token.new_zeros(images, 0), []
        for position in range(self.targets.max_objects * TOKENS_PER_BOX):
            step = self.decoder.step(token, memory, caches, at=position)
            allowed = None if self.grammar is None else self.grammar(position, tokens)
            token = self.sampler(step, allowed, generator=generator)
            tokens = torch.cat((tokens, token[:, None]), dim=1)
            logits.append(step)
        return SequenceOutputs(torch.stack(logits, dim=1), tokens)

    @door
    def loss(self, outputs: SequenceOutputs, targets: Targets) -> dict[str, Tensor]:
        """The criterion's losses; raises ValueError for outputs of inference, which have no target sequences."""
        if outputs.learned is None:
            raise ValueError("SequenceStage.loss: outputs are of inference; forward() needs targets to give losses")
        return self.criterion(outputs.logits, outputs.learned.tokens, outputs.learned.weights)

    @door
    def detections(self, outputs: SequenceOutputs, images: Images) -> Detections:
        """The generated objects, best first: ``max_objects`` rows; a row that is no box is not valid."""
        rows = outputs.tokens.unflatten(1, (-1, TOKENS_PER_BOX))
        scores, labels = self.criterion.scores(outputs.logits[:, TOKENS_PER_BOX - 1 :: TOKENS_PER_BOX], self.coder).max(
            -1
        )
        classes = (labels + self.coder.first_class)[..., None]
        found = self.coder.decode(torch.cat((rows[..., :4], classes), dim=-1), images.sizes.to(scores.dtype))
        best = stable_topk(torch.where(found.valid, scores, -1), rows.shape[1])
        return Detections.padded(
            take_rows(found.boxes, best),
            scores.gather(1, best),
            found.labels.gather(1, best),
            found.valid.gather(1, best),
        )
