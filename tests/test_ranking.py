"""The metric that networks are ranked by: as it is written, and what is half of it."""

import pytest

from convwright.edits import Plan
from convwright.methods import Candidate, Evidence
from convwright.ranking import ACCURACY, Metric, metric_of

MAE, PSNR, MIOU = Metric("mae", False, "px"), Metric("PSNR", unit="dB"), Metric("mIoU")


@pytest.mark.parametrize(
    ("metric", "score", "error", "shown", "change"),
    [
        (ACCURACY, 0.7123, 0.0, "71.23% ± 0.00%", "-10.00 points"),
        (MIOU, 0.7123, 0.0, "71.23%", "-10.00 points"),  # its error is not known
        (MAE, -0.63932, 0.0211, "0.6393 ± 0.0211 px", "+0.1 px"),
        (PSNR, 28.412, None, "28.41 dB", "-0.1 dB"),
        (Metric("loss", False, ""), -0.5, None, "0.5", "+0.1"),
    ],
)
def test_values_and_changes_are_written_in_the_unit(metric, score, error, shown, change):
    assert metric.shown(score, error) == shown
    assert metric.change(score, score - 0.1) == change


@pytest.mark.parametrize(
    ("metric", "before", "after", "half"),
    [
        (ACCURACY, 0.8, 0.41, False), (ACCURACY, 0.8, 0.39, True), (ACCURACY, 0.0, 0.0, False),
        (MAE, -0.5, -0.9, False), (MAE, -0.5, -1.1, True), (Metric("nll", False, ""), 2.0, 1.0, False),
        (PSNR, 28.0, 23.0, False), (PSNR, 28.0, 21.0, True),
    ],
)  # fmt: skip
def test_half_is_of_a_value_of_an_error_or_of_an_amplitude(metric, before, after, half):
    assert metric.halved(before, after) is half


@pytest.mark.parametrize("metric", [ACCURACY, MAE])
def test_evidence_records_a_metric_that_is_not_the_accuracy(metric):
    candidate = Candidate(Plan((), "net", (1, 3, 8, 8), 1, 1), None, 1, 0)
    evidence = Evidence(candidate, 0, -0.5, 0.1, {"macs": 1}, metric=metric)
    values = evidence.to_dict()
    assert ("metric" in values) is (metric is MAE)
    assert metric_of(values) == metric
    assert Evidence.from_dict(values, candidate) == evidence
    assert evidence.judged == metric.shown(-0.5, 0.1)
