"""Samplers whose order is a pure function of (seed, epoch) and that resume exactly at the next sample.

Iterating does not change a sampler: workers prefetch, so samples handed out are not yet samples trained on. The loop
reports its progress with ``advance``, and ``state_dict`` holds that progress.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from detkit import dist
from detkit._door import door
from detkit._ranges import Count, Whole

Item = TypeVar("Item", int, list[int])


class _Resumable(Sampler[Item], ABC, Generic[Item]):
    """Seed, epoch and position in this rank's share of the epoch, with the state that a restart needs."""

    def __init__(self, seed: int, rank: int | None, world_size: int | None) -> None:
        name = type(self).__name__
        self.seed = int(seed)
        self.world_size = dist.world_size() if world_size is None else world_size
        self.rank = dist.rank() if rank is None else rank
        self.epoch = 0
        self.position = 0
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"{name}: rank={self.rank} must lie in 0 to world_size - 1, with {self.world_size=}")

    @abstractmethod
    def _share(self) -> list[Item]:
        """All items of this rank in this epoch."""

    @abstractmethod
    def __len__(self) -> int:
        """Items of this rank in a whole epoch, whatever the position."""

    def __iter__(self) -> Iterator[Item]:
        if self.position == len(self) > 0:
            name, over = type(self).__name__, self.epoch
            warnings.warn(f"{name}: epoch {over} is over and gives nothing; set_epoch({over + 1})", stacklevel=2)
        return iter(self._share()[self.position :])

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch. Setting the current epoch again changes nothing, so that a resumed one continues."""
        if epoch < 0:
            raise ValueError(f"{type(self).__name__}.set_epoch: epoch={epoch} must not be negative")
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def advance(self, count: int = 1) -> None:
        """Record that ``count`` further items of this rank have been trained on."""
        if not 0 <= count <= len(self) - self.position:
            left = len(self) - self.position
            raise ValueError(f"{type(self).__name__}.advance: count={count} must lie in 0 to {left}, what is left")
        self.position += count

    def state_dict(self) -> dict[str, Any]:
        """Epoch and position, with the settings they depend on: plain values, safe for ``weights_only`` loading."""
        return {"epoch": self.epoch, "position": self.position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken. Raises ValueError where what the order depends on differs."""
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise ValueError(
                    f"{type(self).__name__}.load_state_dict: {key}={state.get(key)!r} was saved, but this sampler has "
                    f"{key}={value}: its order would be another one"
                )
        epoch: Any = state.get("epoch")
        position: Any = state.get("position")
        whole = isinstance(epoch, int) and isinstance(position, int)
        if not whole or epoch < 0 or not 0 <= position <= len(self):
            raise ValueError(
                f"{type(self).__name__}.load_state_dict: epoch={epoch!r}, position={position!r}; allowed are whole "
                f"numbers, a position of 0 to {len(self)}"
            )
        self.epoch, self.position = epoch, position

    def _identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "length": len(self), "world_size": self.world_size}


class ResumableSampler(_Resumable[int]):
    """Indices of a data set for one of several ranks: rank r takes every world_size-th of the epoch's order, from r on.

    With ``shuffle=True`` (training) every rank gets the same number of samples, or the others would wait forever: the
    order is padded with its beginning, or truncated with ``drop_last=True`` (which samples are left out changes with
    the epoch). With ``shuffle=False`` (evaluation) the order is 0, 1, 2 ..., shares may differ by one and no sample is
    seen twice. ``rank`` and ``world_size`` default to those of the process group; ``length`` is the data set's.

    ``blocks`` are the sizes of runs of samples that lie together, such as shards, and shuffling keeps near what lies
    near: the blocks come in random order, and samples are shuffled within ``mixed`` blocks at a time.

    In the loop: ``sampler.set_epoch(epoch)`` before each epoch, ``sampler.advance(len(images))`` after each step, and
    ``state_dict()`` into the checkpoint. Raises ValueError for a negative length or seed, a rank out of range, or
    blocks that do not add up to the length.

    >>> sampler = ResumableSampler(10, seed=1)
    >>> order = list(sampler)
    >>> sampler.advance(4)
    >>> resumed = ResumableSampler(10, seed=1)
    >>> resumed.load_state_dict(sampler.state_dict())
    >>> list(resumed) == order[4:]
    True
    """

    @door
    def __init__(
        self,
        length: Whole,
        *,
        seed: Whole = 0,
        rank: Whole | None = None,
        world_size: Count | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        blocks: Sequence[Whole] | None = None,
        mixed: Count = 4,
    ) -> None:
        super().__init__(seed, rank, world_size)
        if blocks is not None and sum(blocks) != length:
            raise ValueError(f"ResumableSampler: blocks hold {sum(blocks)} samples; allowed are those of {length=}")
        self.length = int(length)  # plain numbers, as a checkpoint in JSON needs them
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.blocks, self.mixed = None if blocks is None else [int(size) for size in blocks], int(mixed)

    def __len__(self) -> int:
        total = self._total()
        return total // self.world_size + (self.rank < total % self.world_size)

    def _total(self) -> int:
        """Samples of all ranks together."""
        rest = self.length % self.world_size
        if self.drop_last:
            return self.length - rest
        return self.length + (self.world_size - rest if self.shuffle and rest else 0)

    def _share(self) -> list[int]:
        order = self._shuffled() if self.shuffle else np.arange(self.length)
        return np.resize(order, self._total())[self.rank :: self.world_size].tolist()

    def _shuffled(self) -> np.ndarray:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.blocks is None:
            return rng.permutation(self.length)
        ends = np.cumsum(self.blocks)
        blocks = [np.arange(end - size, end) for end, size in zip(ends, self.blocks, strict=True)]
        order = rng.permutation(len(blocks))
        groups = [order[first : first + self.mixed] for first in range(0, len(order), self.mixed)]
        parts = [rng.permutation(np.concatenate([blocks[block] for block in group])) for group in groups]
        return np.concatenate([np.arange(0), *parts])

    def _identity(self) -> dict[str, Any]:
        order = {"shuffle": self.shuffle, "drop_last": self.drop_last}
        order |= {"blocks": self.blocks, "mixed": None if self.blocks is None else self.mixed}
        return {"seed": self.seed, "length": self.length, "world_size": self.world_size, **order}


class BalancedBatchSampler(_Resumable[list[int]]):
    """Batches that draw every class equally often: counts differ by at most 1 in a batch and in an epoch.

    Each slot of a batch belongs to a class, in one cycle through all classes that continues over the batches of an
    epoch. It is filled with the next image of that class, reshuffled whenever the class is exhausted. So images of rare
    classes repeat, and those of common classes are not all seen in one epoch. An image with several classes counts for
    the one whose slot it fills; images without labels are never drawn, and a label below 0 is none. With
    ``samples_per_class`` a slot takes so many images of its class, none twice unless the class has fewer: 32 and 4 make
    the batches of 8 classes x 4 images that metric losses want ("PK"); counts then differ by at most 4.

    labels_per_image: the label or labels of each image (a sequence or tensor, possibly empty). ``batches`` is the
    number per rank and epoch, by default as many as the images fill; ranks take every world_size-th batch. Pass it to a
    DataLoader as ``batch_sampler``, call ``set_epoch(epoch)`` before each epoch and ``advance()`` after each step; an
    epoch that is over gives no batches, with a warning. Raises ValueError if there is no label at all, for a
    ``batch_size`` or ``batches`` below 1, and a ``batch_size`` that ``samples_per_class`` does not divide.

    >>> labels = [0, 0, 0, 0, 0, 1]
    >>> [sorted(labels[image] for image in batch) for batch in BalancedBatchSampler(labels, 2)]
    [[0, 1], [0, 1], [0, 1]]
    """

    @door
    def __init__(
        self,
        labels_per_image: Sequence[int | Sequence[int] | Tensor],
        batch_size: Count,
        *,
        seed: Whole = 0,
        batches: Count | None = None,
        samples_per_class: Count = 1,
        rank: Whole | None = None,
        world_size: Count | None = None,
    ) -> None:
        super().__init__(seed, rank, world_size)
        if batch_size % samples_per_class:
            raise ValueError(
                f"BalancedBatchSampler: {batch_size=} is no multiple of {samples_per_class=}: slots are whole"
            )
        self.batch_size, self.samples_per_class = batch_size, samples_per_class
        self.images_per_class = _images_per_class(labels_per_image)
        filled = len(labels_per_image) // (batch_size * self.world_size)
        self.batches = max(filled, 1) if batches is None else batches

    def __len__(self) -> int:
        return self.batches

    def _share(self) -> list[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        each = self.samples_per_class
        slots = self.batches * self.world_size * self.batch_size // each
        cycle = rng.permutation(len(self.images_per_class))
        classes = np.resize(cycle, slots)
        order = np.empty((slots, each), np.int64)
        for c, images in enumerate(self.images_per_class):
            mine = classes == c
            full = max(len(images) // each, 1) * each  # of a shuffled class what fills whole slots
            rounds = -(-int(mine.sum()) * each // full)
            shuffled = [np.resize(rng.permutation(images), full) for _ in range(rounds)]
            order[mine] = np.concatenate([images[:0], *shuffled])[: mine.sum() * each].reshape(-1, each)
        batches = rng.permuted(order.reshape(-1, self.batch_size), axis=1)
        return batches[self.rank :: self.world_size].tolist()

    def _identity(self) -> dict[str, Any]:
        sizes = {"batch_size": int(self.batch_size), "samples_per_class": int(self.samples_per_class)}
        return {**super()._identity(), **sizes, "images_per_class": [len(images) for images in self.images_per_class]}


def _images_per_class(labels_per_image: Sequence[int | Sequence[int] | Tensor]) -> list[np.ndarray]:
    """The images of each class that occurs, in ascending order of labels."""
    images: dict[int, list[int]] = {}
    for image, labels in enumerate(labels_per_image):
        for label in np.unique(np.asarray(labels)).tolist():
            if label >= 0:
                images.setdefault(int(label), []).append(image)
    if not images:
        raise ValueError(f"BalancedBatchSampler: none of the {len(labels_per_image)} images has a label")
    return [np.array(images[label]) for label in sorted(images)]
