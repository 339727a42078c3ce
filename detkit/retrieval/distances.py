"""Distances between embeddings, of which the smaller is always the nearer: nobody else has to know a direction.

Every distance is a rising function of the squared Euclidean distance between *prepared* embeddings. Hence one search
engine for squares serves them all.
"""

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from detkit._door import door
from detkit._gradient import with_gradient
from detkit._inputs import is_transformed, promote
from detkit.retrieval import fused

_LEAST = 1.1e-19  # its square is next to the least number that float32 holds in full


class Distance(nn.Module):
    """How far embeddings (N, D) are from references (M, D): a subclass says how it prepares, and reads squares.

    Squares of a whole matrix come from a matrix product: their error is about 1e-7 of the squared norms, so that
    neighbors must be found again among near ones with :meth:`paired`, which subtracts. ``needs_direction`` says that
    an embedding of zeros is at no distance that means anything; indexes refuse it.

    >>> EuclideanDistance()(torch.tensor([[0.0, 0], [3, 4]]), torch.tensor([[3.0, 4]]))
    tensor([[5.],
            [0.]])
    """

    needs_direction = False

    @door
    def prepare(self, embeddings: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Embeddings whose squared Euclidean distances order as this distance does; half precision is promoted."""
        return promote(embeddings)

    @door
    def of_squares(self, squares: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """This distance from squared Euclidean distances of prepared embeddings."""
        raise NotImplementedError(f"{type(self).__name__} must define of_squares()")

    @door
    def forward(self, embeddings: Float[Tensor, "N D"], references: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
        """The distance of every embedding from every reference. Raises ValueError where their widths differ."""
        for name, vectors in (("embeddings", embeddings), ("references", references)):
            if vectors.ndim != 2 or vectors.shape[1] != embeddings.shape[-1]:
                raise ValueError(
                    f"{type(self).__name__}: {name} have shape {tuple(vectors.shape)}; allowed is (N, D) and (M, D)"
                )
        prepared = self.prepare(embeddings)
        others = prepared if references is embeddings else self.prepare(references)
        return self.of_squares(squared_distances(prepared, others))

    @door
    def paired(self, embeddings: Float[Tensor, "*#B D"], references: Float[Tensor, "*#B D"]) -> Float[Tensor, "*#B"]:
        """The distance of each embedding from its own reference, (...); shapes broadcast."""
        return self.of_squares((self.prepare(embeddings) - self.prepare(references)).square().sum(-1))


@final
class EuclideanDistance(Distance):
    """The length of the difference. Its gradient at distance 0 is 0.

    >>> EuclideanDistance().paired(torch.tensor([3.0, 4]), torch.tensor([[0.0, 0], [3, 4]]))
    tensor([5., 0.])
    """

    @door
    def of_squares(self, squares: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The roots."""
        return with_gradient(_root, fused.root, squares, least=_LEAST)


def _root(squares: Tensor, *, least: float) -> Tensor:
    return squares.clamp(min=least**2).sqrt() - least  # a root of 0 has no gradient


@final
class CosineDistance(Distance):
    """1 minus the cosine of the angle, from 0 to 2: the lengths of the embeddings do not matter.

    An embedding of zeros has no direction and counts as 0.5 from any other that has one.

    >>> CosineDistance()(torch.tensor([[2.0, 0]]), torch.tensor([[5.0, 0], [0, 1], [-1, 0]]))
    tensor([[0., 1., 2.]])
    """

    needs_direction = True

    @door
    def prepare(self, embeddings: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Embeddings of length 1."""
        return directions(embeddings)

    @door
    def of_squares(self, squares: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Half the squares."""
        return squares / 2


def directions(vectors: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """Vectors scaled to length 1, however long they are: their squares need not fit their type.

    Zeros stay zeros, and what is shorter than about 1e-31 (in float64 1e-166) stays shorter than 1.

    >>> directions(torch.tensor([[3e30, 4e30], [3e-30, 4e-30], [0, 0]]))
    tensor([[0.6000, 0.8000],
            [0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    vectors = promote(vectors)
    if not vectors.shape[-1]:
        return vectors
    least = torch.finfo(vectors.dtype).tiny ** 0.5  # of shorter ones the gradient would overflow
    return F.normalize(vectors / vectors.detach().abs().amax(-1, keepdim=True).clamp(min=least), dim=-1)


@door
def squared_distances(embeddings: Float[Tensor, "N D"], references: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """Squared Euclidean distances by one matrix product, never below 0, in the wider type of the two.

    Half precision is promoted. Numbers of which a few squares overflow count as the largest of which none do, in
    float32 and of width 256 4e17: what is finite has finite distances.

    >>> squared_distances(torch.tensor([[0.0, 0], [3, 4]]), torch.tensor([[3.0, 4]]))
    tensor([[25.],
            [ 0.]])
    """
    rows = _bounded(promote(embeddings))
    others = rows if references is embeddings else _bounded(promote(references))
    if torch.compiler.is_compiling() or is_transformed() or rows.dtype != others.dtype:
        squares = rows.square().sum(1)[:, None] + others.square().sum(1)
        return (squares - 2 * inner_products(rows, others)).clamp(min=0)
    return _SquaredDistances.apply(rows, None if others is rows else others)  # pyright: ignore[reportReturnType]


def _bounded(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    largest = (torch.finfo(rows.dtype).max / (8 * max(rows.shape[1], 1))) ** 0.5
    return rows.clamp(-largest, largest)


class _SquaredDistances(torch.autograd.Function):
    """One matrix forward, one or two products backward: autograd of the formula keeps five matrices."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, references: Tensor | None) -> Tensor:
        others = rows if references is None else references
        ctx.save_for_backward(rows, references)
        with in_full_precision(rows):
            squares = torch.addmm(others.square().sum(1), rows, others.T, alpha=-2)
        return squares.add_(rows.square().sum(1)[:, None]).clamp_(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, references = ctx.saved_tensors
        if references is None:
            return _from_differences(with_transpose(gradient), rows, rows), None
        needed, theirs = ctx.needs_input_grad
        return (
            _from_differences(gradient, rows, references) if needed else None,
            _from_differences(gradient.T, references, rows) if theirs else None,
        )


def _from_differences(gradient: Float[Tensor, "N M"], rows: Tensor, others: Tensor) -> Float[Tensor, "N D"]:
    with in_full_precision(rows):
        return 2 * (gradient.sum(1, keepdim=True) * rows - gradient @ others)


def in_full_precision(rows: Tensor) -> torch.autocast:
    """Without autocast, which would round products to half precision: near ones then lose all that tells them apart.

    >>> with torch.autocast("cpu", dtype=torch.bfloat16), in_full_precision(torch.ones(1, 1)):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float32
    """
    return torch.autocast(rows.device.type, enabled=False)


@door
def inner_products(embeddings: Float[Tensor, "N D"], references: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """The inner product of every pair, in the wider type of the two.

    Where the references are the embeddings themselves the gradient takes one matrix product instead of two.

    >>> inner_products(torch.tensor([[1.0, 2]]), torch.tensor([[3.0, 4], [5, 6]]))
    tensor([[11., 17.]])
    """
    own = references is embeddings
    dtype = torch.promote_types(embeddings.dtype, references.dtype)
    rows, others = embeddings.to(dtype), references.to(dtype)
    if not torch.compiler.is_compiling() and is_transformed():
        with in_full_precision(rows):
            return rows @ others.T
    return _Products.apply(rows, None if own else others)  # pyright: ignore[reportReturnType]


class _Products(torch.autograd.Function):
    """In full precision backward, too: compiled, that follows the autocast around the call."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, references: Tensor | None) -> Tensor:
        with in_full_precision(rows):
            return rows @ (rows if references is None else references).T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (rows, references), (gradient,) = ctx.saved_tensors, gradients
        needed, theirs = ctx.needs_input_grad
        with in_full_precision(rows):
            if references is None:
                return with_transpose(gradient) @ rows, None
            return gradient @ references if needed else None, gradient.T @ rows if theirs else None


def with_transpose(matrix: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    """A square matrix plus its transpose: copied first, it takes a tenth of the time.

    >>> with_transpose(torch.tensor([[1.0, 2], [3, 4]]))
    tensor([[2., 5.],
            [5., 8.]])
    """
    return matrix.T.clone(memory_format=torch.contiguous_format) + matrix
