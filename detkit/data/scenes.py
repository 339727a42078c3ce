"""Scenes of real handwritten digits on synthetic canvases: a detection data set without any download.

The digits are scikit-learn's ``load_digits``: 1,797 images of 8 x 8 pixels from the UCI Optical Recognition of
Handwritten Digits data set (Alpaydin and Kaynak 1998, the test set: 13 writers), bundled with scikit-learn.
"""

from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import tv_tensors

from detkit._door import door
from detkit._ranges import Range, Whole
from detkit.data.truth import Transforms, make_target
from detkit.structures import Target

Split = Literal["train", "val", "test"]
SPLITS: dict[str, tuple[int, ...]] = {"train": (0, 1, 2, 3, 4), "val": (5,), "test": (6,)}
"""Of every seven samples of a digit, in scikit-learn's order: which belong to the split."""
SIDES = (18, 48)
"""Smallest and largest side, in pixels, of the square that an 8 x 8 digit is enlarged to."""
DIGITS = (3, 6)
"""Fewest and most digits that a scene tries to place; those that find no room are left out."""
_MAX_SIDE = 4096
Side = Annotated[int, Range(32, _MAX_SIDE)]
_COVER = 0.15  # of the smaller of two digits' squares, at most this part may be covered by the other
_TRIES = 12
_STAMPS = 64
_STAMP_SIDE = 32
_Array = NDArray[np.float32]


class DigitScenes(Dataset[tuple[Any, Target]]):
    """``length`` scenes of up to 6 handwritten digits of 18 to 48 pixels, on gradients with strokes, scraps and noise.

    An item is (image, target): image uint8 (3, H, W) as tv_tensors.Image; target with boxes (T, 4) tight around the
    *visible* ink, labels (T,) the digits 0..9, image_id the index, area (T,) visible ink in pixels, iscrowd zeros, and
    with ``masks=True`` that ink as masks (T, H, W). ``size`` is (height, width). A scene is a pure function of (seed,
    split, index), whatever the order or worker. Splits share no digit sample, as digit or as scrap (5/7 of the samples
    of each class train, 1/7 val, 1/7 test), but may share writers. Raises ValueError for a negative length or seed, an
    unknown split, or sides outside 32..4096; IndexError past the end.

    >>> image, target = DigitScenes(3, split="test")[1]
    >>> image.shape, image.dtype, len(target["labels"]) == len(target["boxes"])
    (torch.Size([3, 96, 96]), torch.uint8, True)
    """

    @door
    def __init__(
        self,
        length: Whole,
        *,
        split: Split = "train",
        size: tuple[Side, Side] = (96, 96),
        seed: Whole = 0,
        masks: bool = False,
        transforms: Transforms | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"DigitScenes: {split=}; allowed are {', '.join(SPLITS)}")
        self.length = length
        self.split: str = split
        self.size = size
        self.seed = seed
        self.masks = masks
        self.transforms = transforms

    @property
    def categories(self) -> list[str]:
        """Name of each label."""
        return [str(digit) for digit in range(10)]

    @property
    def category_ids(self) -> list[int]:
        """Id of each label: the digit itself."""
        return list(range(10))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        canvas, target = self._draw(index)
        image = tv_tensors.Image(torch.from_numpy(canvas.clip(0, 255).astype(np.uint8)))
        return self.transforms(image, target) if self.transforms else (image, target)

    def image_size(self, index: int) -> tuple[int, int]:
        """(height, width), the same for all."""
        return self.size

    def target(self, index: int) -> Target:
        """The target of a scene, before transforms."""
        return self._draw(index)[1]

    def _draw(self, index: int) -> tuple[_Array, Target]:
        index = range(self.length)[index]
        rng = np.random.default_rng((self.seed, list(SPLITS).index(self.split), index))
        bright = rng.random() < 0.5
        canvas = _background(rng, self.size, bright)
        pool = split_samples(self.split)
        _clutter(rng, canvas, pool, bright)
        samples, sides, corners = _placed(rng, pool, self.size)
        owner = np.full(self.size, -1, np.int8)
        for t, (sample, side, (top, left)) in enumerate(zip(samples, sides, corners, strict=True)):
            ink = _ink(side, sample)
            _blend(canvas, ink, top, left, _color(rng, dark=bright))
            owner[top : top + side, left : left + side][ink >= 0.5] = t
        canvas += _noise(rng, self.size) * rng.uniform(0, 10)
        labels = _samples()[1][samples]
        return canvas, _truth(owner, labels, index, self.masks)


def split_samples(split: str) -> NDArray[np.int64]:
    """Indices of the 1,797 samples of ``load_digits`` that a split draws from; each class is split 5 : 1 : 1.

    >>> [len(split_samples(split)) for split in ("train", "val", "test")]
    [1290, 255, 252]
    """
    return _split_samples(split)


@cache
def _split_samples(split: str) -> NDArray[np.int64]:
    labels = _samples()[1]
    ranks = np.empty(len(labels), np.int64)
    for digit in range(10):
        ranks[labels == digit] = np.arange((labels == digit).sum())
    return np.flatnonzero(np.isin(ranks % 7, SPLITS[split]))


@cache
def _samples() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All samples (1797, 8, 8) in 0..16, and their digits."""
    # Here and not above: it takes a second that a user of the readers need not wait.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.asarray(images).reshape(-1, 8, 8), np.asarray(labels).astype(np.int64)


def _ink(side: int, sample: int) -> _Array:
    """One sample as ink (S, S) in 0..1."""
    return _enlarged(side)[sample] * np.float32(1 / 255)


@cache
def _enlarged(side: int) -> NDArray[np.uint8]:
    """All samples (1797, S, S) of one side length: bicubic, then contrast, so that edges are a pixel or two wide."""
    small = torch.from_numpy(_samples()[0]).to(torch.float32)[:, None] / 16
    large = F.interpolate(small, size=(side, side), mode="bicubic", align_corners=False)[:, 0]
    return ((large - 0.25) * 510).clamp(0, 255).round().to(torch.uint8).numpy()


@cache
def _stamps() -> _Array:
    """Strokes to scatter: straight and bent lines, one or two pixels wide, as ink (64, 32, 32)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:_STAMP_SIDE, :_STAMP_SIDE].astype(np.float32) / _STAMP_SIDE - 0.5
    angle, bend, wide = (rng.uniform(low, high, (_STAMPS, 1, 1)) for low, high in ((0, np.pi), (-2, 2), (0.02, 0.05)))
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle) + bend * (along**2 - 0.05)
    stroke = np.clip((wide - abs(across)) * _STAMP_SIDE + 0.5, 0, 1) * (abs(along) < 0.45)
    return stroke.astype(np.float32)


@cache
def _noise_bank() -> _Array:
    """Standard normal numbers, drawn once: each scene uses a slice of them."""
    return np.random.default_rng(1).standard_normal(1 << 18, np.float32)


@cache
def _ramps(size: tuple[int, int]) -> _Array:
    """Vertical and horizontal ramps from -1 to 1, (2, H, W)."""
    return np.stack(np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in size), indexing="ij"))


def _noise(rng: np.random.Generator, size: tuple[int, int]) -> _Array:
    bank, height, width = _noise_bank(), *size
    start = int(rng.integers(len(bank) - min(len(bank) - 1, 3 * height * width)))
    return np.resize(bank[start:], (3, height, width))


def _background(rng: np.random.Generator, size: tuple[int, int], bright: bool) -> _Array:
    """A color with an intensity gradient, (3, H, W); bright ones are for dark ink."""
    slopes = rng.uniform(-25, 25, 2).astype(np.float32)
    shade = np.tensordot(slopes, _ramps(size), 1)
    return shade + _color(rng, dark=not bright)


def _color(rng: np.random.Generator, *, dark: bool) -> _Array:
    """A color (3, 1, 1) of low saturation, dark or bright."""
    level = rng.uniform(10, 65) if dark else rng.uniform(170, 235)
    return (level + rng.uniform(-25, 25, (3, 1, 1))).astype(np.float32)


def _clutter(rng: np.random.Generator, canvas: _Array, pool: NDArray[np.int64], bright: bool) -> None:
    """Strokes, and scraps of digits too small to be one, both fainter than digits."""
    _, height, width = canvas.shape
    for _ in range(rng.integers(2, 7)):
        if rng.random() < 0.5:
            ink = _stamps()[rng.integers(_STAMPS)]
        else:
            whole = _ink(2 * int(rng.integers(SIDES[0] // 2, 16)), int(pool[rng.integers(len(pool))]))
            third = len(whole) // 3
            ink = whole[:third] if rng.random() < 0.5 else whole[:, :third]
        top, left = int(rng.integers(height - ink.shape[0] + 1)), int(rng.integers(width - ink.shape[1] + 1))
        _blend(canvas, ink * np.float32(rng.uniform(0.15, 0.5)), top, left, _color(rng, dark=bright))


def _placed(
    rng: np.random.Generator, pool: NDArray[np.int64], size: tuple[int, int]
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Samples, side lengths and top-left corners of the digits that could be placed; the first always can."""
    count = int(rng.integers(DIGITS[0], DIGITS[1] + 1))
    largest = min(SIDES[1], *size) // 2
    sides = 2 * rng.integers(SIDES[0] // 2, largest + 1, count)
    room = np.array(size) - sides[:, None, None] + 1
    tries = (rng.random((count, _TRIES, 2)) * room).astype(np.int64)
    taken = np.zeros((0, 3), np.int64)
    chosen = []
    for t in range(count):
        free = np.flatnonzero(_free(tries[t], int(sides[t]), taken))
        if free.size:
            taken = np.concatenate([taken, [[*tries[t, free[0]], sides[t]]]])
            chosen.append(t)
    samples = pool[rng.integers(len(pool), size=count)][chosen]
    return samples.tolist(), sides[chosen].tolist(), [(int(top), int(left)) for top, left in taken[:, :2]]


def _free(corners: NDArray[np.int64], side: int, taken: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which corners (K, 2) place a square of ``side`` with little overlap with the squares already taken."""
    sides = taken[:, 2]
    start = np.maximum(corners[:, None], taken[:, :2])
    stop = np.minimum(corners[:, None] + side, taken[:, :2] + sides[:, None])
    shared = (stop - start).clip(0).prod(2)
    return (shared <= _COVER * np.minimum(sides, side) ** 2).all(1)


def _blend(canvas: _Array, ink: _Array, top: int, left: int, color: _Array) -> None:
    window = canvas[:, top : top + ink.shape[0], left : left + ink.shape[1]]
    window += ink * (color - window)


def _truth(owner: NDArray[np.int8], labels: NDArray[np.int64], index: int, masks: bool) -> Target:
    """The target of a scene from the owner of each pixel; a digit that is covered completely is left out."""
    ink = owner == np.arange(len(labels), dtype=np.int8)[:, None, None]
    area = ink.sum((1, 2))
    rows, columns = ink.any(2), ink.any(1)
    boxes = np.stack(
        [
            columns.argmax(1),
            rows.argmax(1),
            columns.shape[1] - columns[:, ::-1].argmax(1),
            rows.shape[1] - rows[:, ::-1].argmax(1),
        ],
        1,
    )
    seen = area > 0
    target = make_target(
        boxes[seen].astype(np.float32),
        labels[seen],
        size=(owner.shape[0], owner.shape[1]),
        image_id=index,
        area=area[seen].astype(np.float32),
        iscrowd=np.zeros(seen.sum(), np.int64),
    )
    if masks:
        target["masks"] = tv_tensors.Mask(torch.from_numpy(ink[seen].astype(np.uint8)))
    return target
