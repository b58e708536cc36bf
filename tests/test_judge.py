"""Intervals, calibration, saving and plots."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import notebook_functions
from PIL import Image
from scipy.special import softmax

from eurosat_utils import Progress, atomic_path, plot_tiles, save_figure, wilson_interval


@pytest.fixture(scope="module")
def training():
    """The functions of Training.ipynb."""
    return notebook_functions("Training.ipynb")


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3 (Wilson's score)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_agrees_with_a_published_table(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="0 of 0 is not a proportion"):
        wilson_interval(0, 0)
    with pytest.raises(ValueError, match="5 of 4 is not a proportion"):
        wilson_interval(5, 4)


@pytest.fixture
def overconfident():
    """Probabilities whose logits are 2.5 times too large, and labels drawn from the true ones."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 10))
    true = softmax(logits, axis=1)
    labels = np.array([random.choice(10, p=row) for row in true])
    return softmax(2.5 * logits, axis=1), labels


def test_temperature_is_found_and_calibrates_without_changing_a_prediction(overconfident, training):
    probabilities, labels = overconfident
    calibration_bins = training["calibration_bins"]
    temperature = training["fit_temperature"](probabilities, labels)
    assert temperature == pytest.approx(2.5, rel=0.08)
    calibrated = training["apply_temperature"](probabilities, temperature)
    np.testing.assert_allclose(calibrated.sum(axis=1), 1)
    np.testing.assert_array_equal(calibrated.argmax(axis=1), probabilities.argmax(axis=1))
    assert calibration_bins(calibrated, labels)[0] < 0.03 < 0.2 < calibration_bins(probabilities, labels)[0]


def test_temperature_can_be_undone_and_survives_zeros(training):
    apply_temperature = training["apply_temperature"]
    probabilities = np.array([[1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0.55, 0.45, 0, 0, 0, 0, 0, 0, 0, 0]], np.float32)
    warm = apply_temperature(probabilities, 2.0)
    assert np.isfinite(warm).all()
    np.testing.assert_allclose(apply_temperature(warm, 0.5), probabilities, atol=1e-6)


def test_calibration_error_by_hand(training):
    probabilities = np.zeros((4, 10))
    probabilities[:, 0] = [0.9, 0.9, 0.5, 1.0]
    probabilities[:, 1] = 1 - probabilities[:, 0]
    error, bins = training["calibration_bins"](probabilities, np.array([0, 1, 0, 0]))
    assert list(bins["tiles"]) == [1, 2, 1]
    assert list(bins["right"]) == [1, 1, 1]
    assert error == pytest.approx((0.5 + 2 * 0.4 + 0.0) / 4)


def test_file_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "new" / "table.csv"
    with pytest.raises(RuntimeError), atomic_path(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    with atomic_path(target) as path:
        path.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    with pytest.raises(RuntimeError), atomic_path(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert target.read_text() == "whole"


def test_progress_tells_share_speed_and_time_left(capsys):
    progress = Progress("fine-tuning", 10)
    progress.set_params({"epochs": 2, "steps": 40})
    progress.on_epoch_begin(0)
    for step in range(40):
        progress.on_train_batch_end(step, {"accuracy": 0.5})
    progress.on_epoch_end(0, {"accuracy": 0.5, "val_accuracy": 0.25})
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "fine-tuning: epoch 1/2 done, accuracy 0.5000, validation accuracy 0.2500"
    estimate = next(line for line in lines if line.startswith("fine-tuning:  25%|"))
    assert "<00:0" in estimate  # the time that is left
    assert estimate.endswith(" tiles/s, accuracy 0.500")


def test_progress_of_a_resumed_run_counts_from_where_it_resumes(capsys):
    progress = Progress("fine-tuning", 10, [1, 1, 2, 4])
    progress.set_params({"epochs": 4, "steps": 20})
    progress.on_epoch_begin(3)
    progress._start -= 100  # s
    progress._epoch_start -= 100
    for step in range(20):
        progress.on_train_batch_end(step, {"accuracy": 0.5})
    half = next(line for line in capsys.readouterr().out.splitlines() if " 100%|" in line)
    assert "2.0 tiles/s" in half


def test_progress_knows_that_later_epochs_cost_more():
    progress = Progress("fine-tuning", 10, [1, 3])
    progress.set_params({"epochs": 2, "steps": 20})
    progress.on_epoch_begin(0)
    progress._start -= 100  # s
    line = progress._show(19)
    assert "fine-tuning:  25%|" in line
    assert " 01:40<05:00" in line


def test_tiles_are_shown_below_their_titles_and_framed_by_correctness():
    tiles = np.full((3, 64, 64, 3), 77, np.uint8)
    figure = plot_tiles(tiles, ["a", "b\nc", "d"], columns=2, correct=[True, False, True])
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == ["a", "b\nc", "d"]
    np.testing.assert_array_equal(shown[0].images[0].get_array(), tiles[0])
    styles = [(axis.spines["top"].get_edgecolor(), axis.spines["top"].get_linestyle()) for axis in shown]
    assert styles[0] == styles[2] != styles[1]


def test_figure_is_saved_as_png_of_readable_size(tmp_path):
    figure = plt.figure(figsize=(8, 3.8))
    shown = save_figure(figure, tmp_path / "deep" / "figure.png")
    assert shown.data == (tmp_path / "deep" / "figure.png").read_bytes()
    assert not plt.fignum_exists(figure.number)
    with Image.open(tmp_path / "deep" / "figure.png") as image:
        assert image.format == "PNG"
        assert 600 < image.width < 1200
