"""The page: a report as one HTML file, without scripts and without anything that is loaded from elsewhere."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from detkit.evaluate.charts import Line, bar_chart, line_chart, reliability_chart
from detkit.evaluate.pictures import kind_color
from detkit.evaluate.report import Report
from detkit.metrics import ConfusionMatrix
from detkit.metrics.errors import KINDS
from detkit.viz import class_color

MOST_CLASSES = 20
"""Classes up to which tables are shown whole; of more the most frequent confusions are listed, so many."""
MOST_LINES = 7
"""Classes whose curves are drawn."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 980px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd }
p.rule { color: #555; font-size: .92em; max-width: 75ch }
table { border-collapse: collapse; margin: .8em 0 } td, th { padding: .2em .7em; text-align: right }
th { font-weight: 600; border-bottom: 1px solid #999 } td:first-child, th:first-child { text-align: left }
table.matrix { font-size: .85em } table.matrix td + td { border: 1px solid #fff; min-width: 2.2em }
figure { margin: .5em 0; flex: 1 1 400px } figure svg { width: 100%; max-width: 470px; height: auto }
.pair { display: flex; flex-wrap: wrap; gap: 1em } .pair img { width: 100%; height: auto }
svg text { font-size: 12px; fill: #333 } svg .middle { text-anchor: middle } svg .end { text-anchor: end }
svg .axis { font-weight: 600 } svg .grid { stroke: #e4e4e4 } svg .mark { stroke: #222; stroke-dasharray: 4 3 }
svg polyline { fill: none } svg .bin { fill: #56b4e9 }
ul.key { list-style: none; display: flex; flex-wrap: wrap; gap: .2em 1.2em; padding: 0; margin: 0; font-size: .88em }
ul.key i { display: inline-block; width: 1em; height: .7em; margin-right: .4em }
"""


class Drawing(NamedTuple):
    """An image of the page: its name, what is said of it, and its truth and detections as data URIs."""

    name: str
    text: str
    truth: str
    detections: str


def write_page(report: Report, *, title: str, drawings: Sequence[Drawing] = ()) -> str:
    """The page as text; ``drawings`` are the worst images, if there are pictures.

    >>> from detkit.evaluate.report import make_report
    >>> from detkit.metrics import CocoMetrics
    >>> page = write_page(make_report(CocoMetrics(["<b>"])), title="cats")
    >>> page.startswith("<!doctype html>"), "<b>" in page, "<script" in page
    (True, False, False)
    """
    sections = (_summary, _classes, _errors, _curves, _matrix, _calibration)
    body = "".join(part for section in sections for part in section(report))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{body}{''.join(_worst(report, drawings))}"
        "</body></html>\n"
    )


def _summary(report: Report) -> Iterator[str]:
    judged, kind = report.judged, report.judged.iou_type
    compared = "masks" if kind == "segm" else "boxes"
    objects, found = int(judged.object_counts().sum()), len(judged.ranked().scores)
    yield f"<p>{len(judged.images)} images, {objects} objects, {found} detections, compared by {compared}.</p>"
    numbers = {name.removeprefix(f"{kind}/"): value for name, value in report.numbers.items()}
    yield _table(list(numbers), [[_number(value) for value in numbers.values()]])
    yield _rule(
        "COCO's average precision (AP) and recall (AR), over IoU 0.5 to 0.95 or at the IoU named. Everything below is "
        f"at IoU {judged.iou_threshold:g} and counts the same hits. Crowds, ignored objects and the detections on them "
        "are taken out first: they are neither found nor missed nor false."
    )


def _classes(report: Report) -> Iterator[str]:
    yield "<h2>Classes</h2>"
    rows, present = [], [label for label, row in enumerate(report.classes) if row.objects]
    for label in sorted(present, key=lambda label: -report.classes[label].AP):
        row, (threshold, f1) = report.classes[label], report.curves[label].best()
        rows.append([row.name, str(row.objects), _number(row.AP), _number(row.AP50), f"{f1:.3f}", f"{threshold:.3f}"])
    table = _table(["class", "objects", "AP", "AP50", "best F1", "at score"], rows)
    yield table if len(rows) <= MOST_CLASSES else f"<details><summary>all {len(rows)}</summary>{table}</details>"
    if len(present) < len(report.classes):
        yield _rule(f"{len(report.classes) - len(present)} classes have no objects here, and no AP.")


def _errors(report: Report) -> Iterator[str]:
    errors = report.errors
    yield "<h2>Errors by kind</h2>"
    texts = {kind: f"{100 * cost:.1f} points, {errors.counts[kind]} errors" for kind, cost in errors.costs.items()}
    yield bar_chart([(kind, cost, texts[kind], kind_color(kind)) for kind, cost in errors.costs.items()])
    threshold = report.judged.iou_threshold
    yield _rule(
        f"What would be gained, in points of AP at IoU {threshold:g} (now {_number(errors.AP)}), if all errors of one "
        "kind were mended, and how many there are among all detections, whatever they score (TIDE, Bolya et al. 2020). "
        "The gains do not add up. A detection that is no hit is the first of these. Localization: its IoU with an "
        f"object of its class is from 0.1 to {threshold:g}. Classification: its IoU with an object of another class is "
        f"at least {threshold:g}. Duplicate: a better detection has the object. Background: its IoU with every object "
        "is at most 0.1. Else both. Missed are objects that no detection finds, and none would if its class or place "
        "were mended."
    )


def _curves(report: Report) -> Iterator[str]:
    yield "<h2>Precision, recall and the score threshold</h2>"
    shown = sorted(range(len(report.curves)), key=lambda label: -report.curves[label].objects)[:MOST_LINES]
    curves = [*(report.curves[label] for label in shown), report.pooled]
    colors = [*(f"rgb{class_color(place)}" for place in range(len(shown))), "#222"]
    looks = [(curve, color, curve is report.pooled) for curve, color in zip(curves, colors, strict=True)]
    lines = [Line(curve.name, curve.recall, curve.precision, color, bold) for curve, color, bold in looks]
    f1 = [Line(curve.name, curve.thresholds, curve.f1, color, bold) for curve, color, bold in looks]
    scores = report.pooled.thresholds
    span = min([0.0, *scores.tolist()]), max([1.0, *scores.tolist()])
    charts = (
        line_chart(lines, axes=("recall", "precision")),
        line_chart(f1, axes=("score threshold", "F1"), span=span, at=report.score_threshold),
    )
    yield f'<div class="pair">{"".join(charts)}</div>'
    best, value = report.pooled.best()
    yield _rule(
        f"F1 over all classes is best, {value:.3f}, for detections that score at least {best:.3f}. "
        f"What follows counts those of at least {report.score_threshold:.3f}, the dashed line."
        + (f" Shown are the {MOST_LINES} classes with most objects." if len(report.curves) > MOST_LINES else "")
    )


def _matrix(report: Report) -> Iterator[str]:
    yield "<h2>Confusion matrix</h2>"
    yield _whole_matrix(report.matrix) if len(report.matrix.names) <= MOST_CLASSES else _confusions(report.matrix)
    yield _rule(
        f"Detections that score at least {report.score_threshold:.3f}. First come the hits of average precision, so a "
        "detection of the right class has an object before one of another class, whatever they score. Of the others "
        "each, best first, takes the free object of any class that it overlaps most, at an IoU of at least "
        f"{report.judged.iou_threshold:g}. What remains is a detection of nothing, and an object missed."
    )


def _whole_matrix(matrix: ConfusionMatrix) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ["true \\ detected", *matrix.names, "missed"])
    rows = "".join(
        f"<tr><td>{escape(name)}</td>{''.join(map(_cell, counts, shares))}</tr>"
        for name, counts, shares in zip(
            [*matrix.names, "nothing"], matrix.counts.tolist(), matrix.shares().tolist(), strict=True
        )
    )
    return f'<table class="matrix"><tr>{head}</tr>{rows}</table>'


def _confusions(matrix: ConfusionMatrix) -> str:
    """The most frequent pairs of different classes, missed and false ones included."""
    others = matrix.counts.copy()
    np.fill_diagonal(others, 0)
    most = np.argsort(-others, axis=None, kind="stable")[:MOST_CLASSES]
    pairs = [divmod(int(place), len(others)) for place in most if others.flat[place]]
    true, detected = (*matrix.names, "nothing"), (*matrix.names, "missed")
    return _table(
        ["true", "detected", "times"],
        [[true[row], detected[column], str(others[row, column])] for row, column in pairs],
    )


def _calibration(report: Report) -> Iterator[str]:
    yield "<h2>Calibration</h2>"
    found = report.calibration
    if found is None:
        yield _rule("The scores are not all in 0 to 1, so they are no probabilities.")
        return
    yield reliability_chart(found.precision, found.counts)
    error = f"{found.error:.3f}, the largest of a bin {found.largest:.3f}" if found.error >= 0 else "none to tell"
    yield _rule(
        f"Expected calibration error: {error}. A bar is the precision of the detections in a bin of scores; bars of "
        "probabilities end at the line. The error is the mean, over all detections, of the distance between a bin's "
        "precision and its mean score (Guo et al. 2017; for detections Küppers et al. 2020)."
    )


def _worst(report: Report, drawings: Sequence[Drawing]) -> Iterator[str]:
    yield "<h2>Worst images</h2>"
    yield _rule(
        f"Most errors first: detections that score at least {report.score_threshold:.3f} and are no hits, and objects "
        f"that none of them finds. {len(report.worst)} of {len(report.judged.images)} images have any."
    )
    if drawings:
        keys = "".join(f'<li><i style="background:{kind_color(kind)}"></i>{kind}</li>' for kind in ("hit", *KINDS))
        yield f'<ul class="key">{keys}</ul>'
    for drawing in drawings:
        yield f"<h3>{escape(drawing.name)}</h3><p>{escape(drawing.text)}</p>"
        sides = ("objects", drawing.truth), ("detections", drawing.detections)
        figures = (
            f'<figure><img alt="{side}" src="{source}"><figcaption>{side}</figcaption></figure>'
            for side, source in sides
        )
        yield f'<div class="pair">{"".join(figures)}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(text)}</th>" for text in head)]
    lines += ["".join(f"<td>{escape(text)}</td>" for text in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(count: int, share: float) -> str:
    color = "#fff" if share > 0.55 else "#222"
    return f'<td style="background:rgba(0,114,178,{share:.2f});color:{color}">{count or ""}</td>'


def _rule(text: str) -> str:
    return f'<p class="rule">{escape(text)}</p>'


def _number(value: float) -> str:
    return f"{value:.3f}" if value >= 0 else "none"
