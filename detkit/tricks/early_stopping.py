"""Early stopping: the end of a run whose metric no longer gets better."""

import math
from typing import Any, Literal

from detkit import dist
from detkit._door import door
from detkit._ranges import Count, NotNegative


class EarlyStopping:
    """Says that a metric has not improved for ``patience`` evaluations in a row; call :meth:`update` after each.

    An evaluation improves if its metric is above the best so far by more than ``min_delta`` (``mode="max"``; below it
    with ``"min"``). NaN never improves, so a run that only yields NaN ends, too; infinities compare as numbers. All
    processes get the answer of the first one's metric, so that none waits for one that stopped. ``best`` is the best
    metric, None before the first number; ``improved`` says whether the last one was it, and so when to save weights.
    ``state_dict`` holds what a resumed run needs. Raises ValueError for another mode.

    >>> stopping = EarlyStopping(2)
    >>> [stopping.update(metric) for metric in (0.1, 0.3, 0.2, float("nan"))]
    [False, False, False, True]
    >>> stopping.best, stopping.improved
    (0.3, False)
    """

    @door
    def __init__(self, patience: Count, *, mode: Literal["max", "min"] = "max", min_delta: NotNegative = 0.0) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"EarlyStopping: mode={mode!r}; allowed is 'max' or 'min'")
        self.patience, self.mode, self.min_delta = patience, mode, min_delta
        self.best: float | None = None
        self.waited = 0

    @property
    def improved(self) -> bool:
        """Whether the last metric was the best so far."""
        return self.best is not None and self.waited == 0

    @property
    def stopped(self) -> bool:
        """Whether the last ``patience`` metrics, or more, were no better."""
        return self.waited >= self.patience

    @door
    def update(self, metric: float) -> bool:
        """Take in the metric of one evaluation; whether to stop. Raises TypeError for what is no number.

        >>> EarlyStopping(1, mode="min").update(3.0)
        False
        """
        try:
            own = float(metric)
        except (TypeError, ValueError):
            kind = type(metric).__name__
            raise TypeError(f"EarlyStopping.update: metric is a {kind}; give a number, one of the metrics") from None
        metric = float(dist.gather_objects(own)[0])
        if self._improves(metric):
            self.best, self.waited = metric, 0
        else:
            self.waited += 1
        return self.stopped

    def state_dict(self) -> dict[str, Any]:
        """The best metric and how many have come since.

        >>> EarlyStopping(3).state_dict()
        {'best': None, 'waited': 0}
        """
        return {"best": self.best, "waited": self.waited}

    @door
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with the settings given here. Raises ValueError for another dict.

        >>> stopping = EarlyStopping(3)
        >>> stopping.load_state_dict({"best": 0.5, "waited": 2})
        >>> stopping.update(0.4)
        True
        """
        if missing := [key for key in self.state_dict() if key not in state_dict]:
            raise ValueError(
                f"EarlyStopping.load_state_dict: no {missing[0]!r} among {sorted(map(str, state_dict))}; allowed is a "
                "state_dict of EarlyStopping"
            )
        self.best, self.waited = state_dict["best"], state_dict["waited"]

    def _improves(self, metric: float) -> bool:
        if math.isnan(metric) or self.best is None:
            return not math.isnan(metric)
        gain = metric - self.best if self.mode == "max" else self.best - metric
        return gain > self.min_delta
