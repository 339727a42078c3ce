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

_LEAST = 1e-19  # its square is the least number that float32 tells from 0


class Distance(nn.Module):
    """How far embeddings (N, D) are from references (M, D): a subclass says how it prepares, and reads squares.

    Squares of a whole matrix come from a matrix product: their error is about 1e-7 of the squared norms, so that
    neighbors must be found again among near ones with :meth:`paired`, which subtracts.

    >>> EuclideanDistance()(torch.tensor([[0.0, 0], [3, 4]]), torch.tensor([[3.0, 4]]))
    tensor([[5.],
            [0.]])
    """

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

    @door
    def prepare(self, embeddings: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        """Embeddings of length 1."""
        return F.normalize(promote(embeddings), dim=-1)

    @door
    def of_squares(self, squares: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Half the squares."""
        return squares / 2


@door
def squared_distances(embeddings: Float[Tensor, "N D"], references: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """Squared Euclidean distances by one matrix product, never below 0, in the wider type of the two.

    >>> squared_distances(torch.tensor([[0.0, 0], [3, 4]]), torch.tensor([[3.0, 4]]))
    tensor([[25.],
            [ 0.]])
    """
    if torch.compiler.is_compiling() or is_transformed() or embeddings.dtype != references.dtype:
        squares = embeddings.square().sum(1)[:, None] + references.square().sum(1)
        return (squares - 2 * inner_products(embeddings, references)).clamp(min=0)
    return _SquaredDistances.apply(embeddings, None if references is embeddings else references)  # pyright: ignore[reportReturnType]


class _SquaredDistances(torch.autograd.Function):
    """One matrix forward, one or two products backward: autograd of the formula keeps five matrices."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, references: Tensor | None) -> Tensor:
        others = rows if references is None else references
        ctx.save_for_backward(rows, references)
        squares = torch.addmm(others.square().sum(1), rows, others.T, alpha=-2)
        return squares.add_(rows.square().sum(1)[:, None]).clamp_(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, references = ctx.saved_tensors
        if references is None:
            return _from_differences(with_transpose(gradient), rows, rows), None
        return _from_differences(gradient, rows, references), _from_differences(gradient.T, references, rows)


def _from_differences(gradient: Float[Tensor, "N M"], rows: Tensor, others: Tensor) -> Float[Tensor, "N D"]:
    return 2 * (gradient.sum(1, keepdim=True) * rows - gradient @ others)


@door
def inner_products(embeddings: Float[Tensor, "N D"], references: Float[Tensor, "M D"]) -> Float[Tensor, "N M"]:
    """The inner product of every pair, in the wider type of the two.

    Where the references are the embeddings themselves the gradient takes one matrix product instead of two.

    >>> inner_products(torch.tensor([[1.0, 2]]), torch.tensor([[3.0, 4], [5, 6]]))
    tensor([[11., 17.]])
    """
    if references is embeddings:
        return _OwnProducts.apply(embeddings)
    dtype = torch.promote_types(embeddings.dtype, references.dtype)
    return embeddings.to(dtype) @ references.to(dtype).T


class _OwnProducts(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor) -> Tensor:
        return rows @ rows.T

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (rows,), (gradient,) = ctx.saved_tensors, gradients
        return with_transpose(gradient) @ rows


def with_transpose(matrix: Float[Tensor, "N N"]) -> Float[Tensor, "N N"]:
    """A square matrix plus its transpose: copied first, it takes a tenth of the time.

    >>> with_transpose(torch.tensor([[1.0, 2], [3, 4]]))
    tensor([[2., 5.],
            [5., 8.]])
    """
    return matrix.T.clone(memory_format=torch.contiguous_format) + matrix
