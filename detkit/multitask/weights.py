"""How much the loss of each task counts: fixed weights, learned uncertainty, or the pace at which each one falls."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from detkit._door import door
from detkit._ranges import NotNegative, Positive
from detkit.dist import all_reduce_mean, all_reduce_sum, world_size

_FASTEST = 1e4  # ratio of two losses: beyond it the weights do not change any more


class LossWeights(nn.Module, ABC):
    """Weighs the losses of ``tasks``: ``losses = weights(detector(images, targets))``; minimize their sum as before.

    A task's losses are those of its name, or of its name and a dot, as the stages of a detector call theirs:
    "boxes" has "boxes.classification" and "boxes.box". A subclass defines :meth:`weigh`. Raises ValueError for no
    tasks, names that occur twice or begin another's, and losses that belong to no task, or tasks without losses.

    >>> class Halves(LossWeights):
    ...     def weigh(self, totals): return torch.full_like(totals, 0.5), {}
    >>> Halves(["boxes"])({"boxes.box": torch.tensor(3.0)})
    {'boxes.box': tensor(1.5000)}
    """

    @door
    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        clash = [(a, b) for i, a in enumerate(self.tasks) for j, b in enumerate(self.tasks) if i != j and _has(a, b)]
        if not self.tasks or clash:
            raise ValueError(
                f"{type(self).__name__}: tasks={tasks!r}; allowed are names, at least one, of which none is another or "
                "its beginning"
            )

    @door
    @abstractmethod
    def weigh(self, totals: Float[Tensor, "K"]) -> tuple[Float[Tensor, "K"], dict[str, Tensor]]:
        """What multiplies the losses of each task, from their sums ``totals``, and losses to add, by name."""

    @door
    def forward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same losses, each times the weight of its task, and what is added."""
        places = {key: self._task_of(key) for key in losses}
        if missing := [task for k, task in enumerate(self.tasks) if k not in places.values()]:
            raise ValueError(f"{type(self).__name__}: no loss of {missing}; there are {sorted(losses)}")
        if shaped := {key: tuple(loss.shape) for key, loss in losses.items() if isinstance(loss, Tensor) and loss.ndim}:
            raise ValueError(f"{type(self).__name__}: losses have shapes {shaped}; allowed is one number each, ()")
        totals = [sum(loss for key, loss in losses.items() if places[key] == k) for k in range(len(self.tasks))]
        factors, added = self.weigh(torch.stack([torch.as_tensor(total) for total in totals]))
        return {key: loss * factors[places[key]] for key, loss in losses.items()} | added

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"tasks={self.tasks}"

    def get_extra_state(self) -> dict[str, Any]:
        """The names of the tasks: the rest of the state is in their order."""
        return {"tasks": list(self.tasks)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError for the state of other tasks."""
        if state["tasks"] != list(self.tasks):
            raise ValueError(
                f"{type(self).__name__}: the state is that of tasks {state['tasks']}; allowed is {list(self.tasks)}"
            )

    def _task_of(self, key: str) -> int:
        for k, task in enumerate(self.tasks):
            if _has(key, task):
                return k
        raise ValueError(f"{type(self).__name__}: loss {key!r} belongs to none of the tasks {list(self.tasks)}")


class FixedWeights(LossWeights):
    """Constant ``weights``, one for each task. Raises ValueError for another number of them.

    >>> weights = FixedWeights(["boxes", "segmentation"], [0.5, 1.0])
    >>> weights({"boxes.box": torch.tensor(3.0), "segmentation": torch.tensor(2.0)})
    {'boxes.box': tensor(1.5000), 'segmentation': tensor(2.)}
    """

    factors: Tensor

    @door
    def __init__(self, tasks: Sequence[str], weights: Sequence[NotNegative]) -> None:
        super().__init__(tasks)
        if len(weights) != len(self.tasks):
            raise ValueError(f"FixedWeights: weights={weights!r}; allowed is one for each of {list(self.tasks)}")
        self.register_buffer("factors", torch.tensor([float(weight) for weight in weights]))

    @door
    def weigh(self, totals: Float[Tensor, "K"]) -> tuple[Float[Tensor, "K"], dict[str, Tensor]]:
        """The weights."""
        return self.factors * torch.ones_like(totals), {}


class UncertaintyWeights(LossWeights):
    """Learned weights: exp(-s) times each task's losses, plus s / 2, the price of being uncertain.

    ``log_variances`` (K,) are the s, 0 at the start; hand them to the optimizer with the detector's parameters. Their
    gradient is that of the losses' mean over processes, so that they stay equal in all without DDP around them. The
    losses that are added are called "boxes.uncertainty" and may be below 0. Source: Kendall, Gal and Cipolla 2018,
    equation 10 of its section 3.2 for classification; regression, where the source halves the loss as well, is weighed
    in the same way here.

    >>> UncertaintyWeights(["boxes"])({"boxes.box": torch.tensor(3.0)})
    {'boxes.box': tensor(3.), 'boxes.uncertainty': tensor(0., grad_fn=<UnbindBackward0>)}
    """

    @door
    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__(tasks)
        self.log_variances = nn.Parameter(torch.zeros(len(self.tasks)))

    @door
    def weigh(self, totals: Float[Tensor, "K"]) -> tuple[Float[Tensor, "K"], dict[str, Tensor]]:
        """exp(-s), and s / 2 of each task."""
        factors = torch.exp(-self.log_variances)
        # What the weights cost has no value but a gradient, that of the losses' mean over processes.
        costs = factors * (all_reduce_sum(totals.detach()) / world_size())
        prices = 0.5 * self.log_variances + (costs - costs.detach())
        added = {f"{task}.uncertainty": price for task, price in zip(self.tasks, prices, strict=True)}
        return factors.detach(), added


class DynamicWeightAverage(LossWeights):
    """Weights by pace: the slower a task's loss fell from one epoch to the next, the more it counts in the one after.

    With r_k the ratio of the mean losses of the last two epochs, w_k = K exp(r_k / T) / (sum over i of exp(r_i / T)):
    weights sum to K. They are 1 in the first two epochs. ``temperature`` is T: the larger, the more equal. In training
    mode every call adds its losses to the epoch's mean (of all processes); call :meth:`end_epoch` once behind each
    epoch. A loss that is not finite is left out, and a ratio to 0 counts as 1. All is in the ``state_dict``. Sources:
    Liu, Johns and Davison 2019, equation 7; "Multitask Learning in Image Recognition, Segmentation, and
    Classification", equation 3.

    >>> weights = DynamicWeightAverage(["segmentation", "boxes"])
    >>> for losses in ({"segmentation": 2.0, "boxes": 4.0}, {"segmentation": 1.0, "boxes": 3.0}):
    ...     weighed = weights({name: torch.tensor(loss) for name, loss in losses.items()})
    ...     weights.end_epoch()
    >>> weights.factors
    tensor([0.9376, 1.0624])
    """

    factors: Tensor
    sums: Tensor
    counts: Tensor
    means: Tensor

    @door
    def __init__(self, tasks: Sequence[str], *, temperature: Positive = 2.0) -> None:
        super().__init__(tasks)
        self.temperature = temperature
        zeros = torch.zeros(len(self.tasks))
        for name, values in {"factors": zeros + 1, "sums": zeros, "counts": zeros, "means": zeros}.items():
            self.register_buffer(name, values.clone())

    @door
    def weigh(self, totals: Float[Tensor, "K"]) -> tuple[Float[Tensor, "K"], dict[str, Tensor]]:
        """The weights of this epoch, and no more losses."""
        if self.training:
            own = totals.detach().to(self.sums)
            known = torch.isfinite(own)
            self.sums += torch.where(known, own, 0)
            self.counts += known
        return self.factors.clone(), {}

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Turn the epoch's losses into the weights of the next (collective call).

        Raises ValueError for a task of which no finite loss came.
        """
        sums, counts = all_reduce_mean(torch.stack((self.sums, self.counts)))
        if silent := [task for task, count in zip(self.tasks, counts.tolist(), strict=True) if not count]:
            raise ValueError(
                f"DynamicWeightAverage.end_epoch: no finite loss of {silent} in this epoch; allowed is at least one "
                "call in training mode"
            )
        means = sums / counts
        self.factors.copy_(self._paced(means / torch.where(self.means > 0, self.means, means)))
        self.means.copy_(means)
        self.sums.zero_()
        self.counts.zero_()

    def _paced(self, ratios: Float[Tensor, "K"]) -> Float[Tensor, "K"]:
        known = torch.where(torch.isnan(ratios), 1, ratios).clamp(max=_FASTEST)  # NaN: both are 0
        return len(self.tasks) * torch.softmax(known / self.temperature, dim=0)

    def extra_repr(self) -> str:
        """The settings that ``print`` shows."""
        return f"tasks={self.tasks}, temperature={self.temperature}"


def _has(key: str, task: str) -> bool:
    return key == task or key.startswith(f"{task}.")
