"""One-pass evaluation against sequences worked by hand."""

import numpy as np
import pytest

from downstream.tracking import metrics as m

SIZE = (200, 100)


def track(predicted, truth, visible=None, size=SIZE, name="t"):
    predicted, truth = np.array(predicted, float), np.array(truth, float)
    visible = np.ones(len(truth), bool) if visible is None else np.array(visible, bool)
    return m.Track(name, predicted, truth, visible, size)


def test_overlap_by_hand():
    a = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 0, 10], [0, 0, -5, 10]], float)
    b = np.array([[0, 0, 10, 10], [5, 0, 10, 10], [50, 50, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]], float)
    assert m.overlaps(a, b) == pytest.approx([1, 1 / 3, 0, 0, 0])


def test_equal_boxes_overlap_exactly_one():
    boxes = np.random.default_rng(0).uniform(0.1, 90, (500, 4))
    assert (m.overlaps(boxes, boxes) == 1).all()


def test_perfect_tracker_in_both_conventions():
    boxes = np.random.default_rng(1).uniform(1, 40, (30, 4))
    loose = m.score_tracks([track(boxes, boxes)]).means
    assert loose == {"SUC": 100, "P": 100, "NP": 100, "NP_mean": 100, "AO": 100, "SR50": 100, "SR75": 100}
    assert m.score_tracks([track(boxes, boxes)], strict=True).means["SUC"] == pytest.approx(2000 / 21)


def test_lost_target_by_hand():
    truth = [[0, 0, 10, 10]] * 4
    predicted = [[0, 0, 10, 10], [5, 0, 10, 10], [100, 50, 10, 10], [100, 50, 10, 10]]
    scores = m.score_tracks([track(predicted, truth)])
    # IoU 1, 1/3, 0, 0. >= with 0 -> -1: thresholds 0, .05 … .30 pass 2 of 4 (7 of 21), the rest 1 of 4 (14 of 21)
    assert scores.means["SUC"] == pytest.approx(100 * (7 * 2 + 14) / (4 * 21))
    # > : thresholds 0 … .30 pass 2 of 4 (7), .35 … .95 pass 1 (13), 1 passes none
    assert m.score_tracks([track(predicted, truth)], True).means["SUC"] == pytest.approx(100 * (14 + 13) / 84)
    assert scores.means["P"] == 50  # errors 0, 5, 112, 112 pixels
    assert scores.means["NP"] == 25  # 0, .5, … of the target's size
    # curve over 0 … .50: one frame of four at every threshold, a second one at .50 alone
    assert scores.means["NP_mean"] == pytest.approx(100 * (50 * 0.25 + 0.5) / 51)
    assert scores.means["AO"] == pytest.approx(100 * (1 / 3) / 3)  # the first frame does not count
    assert scores.means["SR50"] == scores.means["SR75"] == 0
    assert scores.items["SUC"] == [scores.means["SUC"]]


def test_zero_area_boxes():
    truth = [[0, 0, 10, 10], [0, 0, 0, 0], [0, 0, 10, 10]]
    predicted = [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 0, 10]]
    one = track(predicted, truth)
    assert m.counted_frames(one).tolist() == [True, False, True]  # no true box: left out
    scores = m.score_tracks([one]).means
    assert (scores["SUC"], scores["P"], scores["NP"]) == (50, 50, 50)  # an empty prediction fails, even threshold 0
    assert scores["AO"] == 0


def test_precision_and_normalised_precision_use_at_most():
    truth = np.array([[0, 0, 50, 100]] * 2, float)
    errors = m.centre_errors(truth + np.array([20, 0, 0, 0]), truth)
    assert errors.tolist() == [20, 20]
    assert m.precision_curve(errors)[19:21].tolist() == [0, 1]
    relative = m.centre_errors(truth + np.array([10, 0, 0, 0]), truth, normalised=True)
    assert m.normalised_precision_at(relative) == 1  # 10 / 50 = .20
    assert m.normalised_precision_mean(relative) == pytest.approx(31 / 51)


def test_strict_rates_first_frame_and_invisible_frames():
    truth = [[0, 0, 10, 10]] * 5
    half = [0, 0, 10, 5]  # IoU exactly .5
    one = track([half, half, [0, 0, 10, 7.5], [0, 0, 10, 8], [90, 0, 10, 10]], truth, [1, 1, 1, 1, 0])
    scores = m.got10k_scores([one])
    assert scores["AO"] == pytest.approx(100 * (0.5 + 0.75 + 0.8) / 3)
    assert scores["SR50"] == pytest.approx(200 / 3)  # .5 is not above .5
    assert scores["SR75"] == pytest.approx(100 / 3)


def test_long_sequences_weigh_more_in_ao_but_not_in_suc():
    good = track([[0, 0, 10, 10]] * 9, [[0, 0, 10, 10]] * 9)
    bad = track([[0, 0, 10, 10], [50, 50, 10, 10]], [[0, 0, 10, 10]] * 2)
    scores = m.score_tracks([good, bad])
    assert scores.means["AO"] == pytest.approx(100 * 8 / 9)
    assert scores.means["SUC"] == pytest.approx(75)
    assert scores.items["SUC"] == [100, 50]


def test_clipping_is_the_toolkits():
    boxes = np.array([[190, 90, 20, 20], [-10, 0, 20, 10], [300, 0, 5, 5]], float)
    assert m.clip_boxes(boxes, SIZE).tolist() == [[190, 90, 10, 10], [0, 0, 20, 10], [200, 0, 0, 5]]


def test_a_box_that_never_moves_by_hand():
    """What every tracker must beat: the first box in all frames, whatever was predicted."""
    truth = [[0, 0, 10, 10], [5, 0, 10, 10], [50, 50, 10, 10], [50, 50, 10, 10]]
    still = m.unmoved(track(truth, truth))
    assert still.predicted.tolist() == [[0, 0, 10, 10]] * 4
    assert (still.truth == np.array(truth)).all()
    # IoU 1, 1/3, 0, 0: as in the test of a lost target
    assert m.score_tracks([still]).means["SUC"] == pytest.approx(100 * (7 * 2 + 14) / (4 * 21))


def test_as_mmengine_metric():
    from mmdet.registry import METRICS

    from downstream.tracking.evaluator import OnePassEvaluation

    metric = METRICS.build({"type": "mmdet.OnePassEvaluation", "strict": True})
    assert isinstance(metric, OnePassEvaluation)
    metric.process({}, [{"track": track([[0, 0, 10, 10]] * 3, [[0, 0, 10, 10]] * 3)}])
    assert metric.evaluate(1)["SUC"] == pytest.approx(2000 / 21)
    assert metric.scores.items["P"] == [100]
