"""What is computed for a page, and the text of it."""

import pytest
from judged_scenes import NAMES, scenes

from detkit.evaluate.report import make_report, text_lines
from detkit.metrics import CocoMetrics, format_table


def metrics_of(seed, **options):
    metrics = CocoMetrics(NAMES)
    metrics.update(*scenes(seed, **options))
    return metrics


def test_the_numbers_are_those_of_the_metrics_and_agree_with_each_other():
    metrics = metrics_of(0, count=20, crowds=True)
    report = make_report(metrics)
    assert report.numbers == metrics.compute()
    assert report.score_threshold == report.pooled.best()[0]
    lines = text_lines(report)
    assert lines[: 1 + len(NAMES)] == format_table(metrics.per_class()).splitlines()
    found, missed, false = (int(word) for word in lines[-3].replace(",", "").split()[3::2][:3])
    assert found + missed == report.judged.object_counts().sum()
    assert report.matrix.counts[:, :-1].sum() == found + false
    assert sum(row.alarms for row in report.worst) == false
    assert sum(row.missed for row in report.worst) == missed
    assert lines[-3].endswith(f"F1 {report.pooled.best()[1]:.3f}")
    assert lines[-1] == f"AP={report.numbers['bbox/AP']:.3f} AP50={report.numbers['bbox/AP50']:.3f}"


def test_thresholds_are_those_asked_for():
    report = make_report(metrics_of(1), iou_threshold=0.75, score_threshold=0.4)
    assert (report.score_threshold, report.judged.iou_threshold) == (0.4, 0.75)
    assert "cost in AP75" in "".join(text_lines(report))


def test_scores_that_are_no_probabilities_have_no_calibration():
    detections, targets = scenes(0)
    for row in detections:
        row["scores"] = row["scores"] * 9
    metrics = CocoMetrics(NAMES)
    metrics.update(detections, targets)
    report = make_report(metrics)
    assert report.calibration is None
    assert "calibration" not in "".join(text_lines(report))


def test_nothing_at_all_has_a_report():
    assert text_lines(make_report(CocoMetrics(2)))[-2:] == [
        "at score 0.000: 0 found, 0 missed, 0 false, F1 0.000",
        "AP=-1.000 AP50=-1.000",
    ]
    assert pytest.approx(-1) == make_report(metrics_of(0, count=0)).errors.AP
