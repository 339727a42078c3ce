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
from detkit._inputs import promote

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
        return squares.clamp(min=_LEAST**2).sqrt() - _LEAST  # a root of 0 has no gradient


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
    squares = embeddings.square().sum(1)[:, None] + references.square().sum(1)
    return (squares - 2 * inner_products(embeddings, references)).clamp(min=0)


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
        return (gradient + gradient.T) @ rows
