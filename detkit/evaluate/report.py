"""All that is computed for a page, once; and the part of it that is printed."""

from typing import NamedTuple

from detkit.metrics import (
    Calibration,
    ClassResult,
    CocoMetrics,
    ConfusionMatrix,
    ErrorKinds,
    ImageErrors,
    Judged,
    ScoreCurve,
    calibration,
    confusion_matrix,
    error_kinds,
    format_table,
    pooled_curve,
    score_curves,
    worst_images,
)


class Report(NamedTuple):
    """Results of one data set. ``calibration`` is None if the scores are no probabilities; ``score_threshold`` is the
    one of the matrix and of the worst images, ``worst`` without images that have no error."""

    numbers: dict[str, float]
    classes: list[ClassResult]
    judged: Judged
    errors: ErrorKinds
    curves: list[ScoreCurve]
    pooled: ScoreCurve
    score_threshold: float
    matrix: ConfusionMatrix
    calibration: Calibration | None
    worst: list[ImageErrors]


def make_report(metrics: CocoMetrics, *, iou_threshold: float = 0.5, score_threshold: float | None = None) -> Report:
    """Everything at one IoU threshold; without a score threshold at the one of the best F1 over all classes.

    >>> make_report(CocoMetrics(["cat"])).errors.AP
    -1.0
    """
    judged = metrics.judged(iou_threshold=iou_threshold)
    pooled = pooled_curve(judged)
    chosen = pooled.best()[0] if score_threshold is None else score_threshold
    scores = pooled.thresholds
    return Report(
        metrics.compute(),
        metrics.per_class(),
        judged,
        error_kinds(judged),
        score_curves(judged),
        pooled,
        chosen,
        confusion_matrix(judged, score_threshold=chosen),
        calibration(judged) if ((scores >= 0) & (scores <= 1)).all() else None,
        [row for row in worst_images(judged, score_threshold=chosen) if row.alarms or row.missed],
    )


def text_lines(report: Report) -> list[str]:
    """The table of the classes, that of the errors, and a line of the other numbers.

    >>> text_lines(make_report(CocoMetrics(["cat"])))[0]
    'class  objects     AP   AP50'
    """
    errors, threshold = report.errors, f"AP{100 * report.judged.iou_threshold:.0f}"
    lines = [*format_table(report.classes).splitlines(), "", f"error           number  cost in {threshold}"]
    lines += [f"{kind:<14}  {errors.counts[kind]:>6}  {cost:13.3f}" for kind, cost in errors.costs.items()]
    hits = report.judged.above(report.score_threshold).ranked().hits
    found, objects = int(hits.sum()), int(report.judged.object_counts().sum())
    missed, alarms = objects - found, len(hits) - found
    f1 = 2 * found / max(1, objects + len(hits))
    lines += ["", f"at score {report.score_threshold:.3f}: {found} found, {missed} missed, {alarms} false, F1 {f1:.3f}"]
    if report.calibration is not None and report.calibration.error >= 0:
        lines.append(f"expected calibration error {report.calibration.error:.3f}")
    prefix = f"{report.judged.iou_type}/AP"
    return [*lines, f"AP={report.numbers[prefix]:.3f} AP50={report.numbers[f'{prefix}50']:.3f}"]
