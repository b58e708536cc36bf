"""Intervals, calibration, saving and every plot."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from eurosat_utils import (
    CLASSES,
    Progress,
    apply_temperature,
    atomic_path,
    calibration_bins,
    describe_machine,
    fit_temperature,
    plot_confusion,
    plot_interval_width,
    plot_reliability,
    plot_tiles,
    save_figure,
    wilson_interval,
)


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


def test_temperature_is_found_and_calibrates_without_changing_a_prediction(overconfident):
    probabilities, labels = overconfident
    temperature = fit_temperature(probabilities, labels)
    assert temperature == pytest.approx(2.5, rel=0.08)
    calibrated = apply_temperature(probabilities, temperature)
    np.testing.assert_allclose(calibrated.sum(axis=1), 1)
    np.testing.assert_array_equal(calibrated.argmax(axis=1), probabilities.argmax(axis=1))
    assert calibration_bins(calibrated, labels)[0] < 0.03 < 0.2 < calibration_bins(probabilities, labels)[0]


def test_temperature_can_be_undone_and_survives_zeros():
    probabilities = np.array([[1.0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0.55, 0.45, 0, 0, 0, 0, 0, 0, 0, 0]], np.float32)
    warm = apply_temperature(probabilities, 2.0)
    assert np.isfinite(warm).all()
    np.testing.assert_allclose(apply_temperature(warm, 0.5), probabilities, atol=1e-6)


def test_calibration_error_by_hand():
    probabilities = np.zeros((4, 10))
    probabilities[:, 0] = [0.9, 0.9, 0.5, 1.0]
    probabilities[:, 1] = 1 - probabilities[:, 0]
    error, bins = calibration_bins(probabilities, np.array([0, 1, 0, 0]))
    assert list(bins["tiles"]) == [1, 2, 1]
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


def test_machine_is_described():
    machine = describe_machine()
    assert machine["processor"]
    assert machine["cores"] >= 1
    assert 0.01 < machine["peak_memory_gb"] < machine["memory_gb"]


def test_progress_tells_share_speed_and_time_left(capsys):
    progress = Progress("fine-tuning", 10)
    progress.set_params({"epochs": 2, "steps": 40})
    progress.on_epoch_begin(0)
    for step in range(40):
        progress.on_train_batch_end(step, {"accuracy": 0.5})
    progress.on_epoch_end(0, {"accuracy": 0.5, "val_accuracy": 0.25})
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "fine-tuning: epoch 1/2 done, accuracy 0.5000, validation accuracy 0.2500"
    estimate = next(line for line in lines if " 52%" in line)
    assert "fine-tuning: epoch 1/2" in estimate
    assert "tiles/s, about 0.0 min left accuracy 0.500" in estimate


@pytest.fixture
def judged():
    """Labels, predictions and probabilities of 200 tiles."""
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.full(10, 0.2), 200)
    return random.integers(0, 10, 200), probabilities


def test_tiles_are_shown_below_their_titles_and_framed_by_correctness():
    tiles = np.full((3, 64, 64, 3), 77, np.uint8)
    figure = plot_tiles(tiles, ["a", "b\nc", "d"], columns=2, correct=[True, False, True])
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == ["a", "b\nc", "d"]
    np.testing.assert_array_equal(shown[0].images[0].get_array(), tiles[0])
    styles = [(axis.spines["top"].get_edgecolor(), axis.spines["top"].get_linestyle()) for axis in shown]
    assert styles[0] == styles[2] != styles[1]


def test_confusion_matrix_shows_class_names_and_per_cent(judged):
    labels = [CLASSES[index] for index in judged[0]]
    predictions = ["River" if label == "Highway" else label for label in labels]
    axis = plot_confusion(labels, predictions).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == list(CLASSES)
    texts = np.reshape([text.get_text() for text in axis.texts], (10, 10))
    assert texts[CLASSES.index("Highway"), CLASSES.index("River")] == "100.0"
    assert texts[CLASSES.index("Highway"), CLASSES.index("Highway")] == ""
    assert "%" in axis.collections[0].colorbar.ax.get_ylabel()


def test_reliability_states_the_error_of_each_variant(judged):
    labels, probabilities = judged
    figure = plot_reliability({"before": probabilities, "after": apply_temperature(probabilities, 3)}, labels)
    error = calibration_bins(probabilities, labels)[0]
    assert figure.axes[0].get_title() == f"before: expected calibration error {100 * error:.2f}%"
    assert sum(patch.get_height() for patch in figure.axes[2].patches) == len(labels)


def test_interval_plot_marks_both_numbers_of_images():
    axis = plot_interval_width(0.95, 20, 5400).axes[0]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    low, high = wilson_interval(19, 20)
    assert f"20 tiles: {100 * (high - low):.1f} points wide" in labels
    assert any(label.startswith("5,400 tiles") for label in labels)


def test_figure_is_saved_as_png_of_readable_size(tmp_path):
    figure = plot_interval_width(0.9, 20, 100)
    shown = save_figure(figure, tmp_path / "deep" / "figure.png")
    assert shown.data == (tmp_path / "deep" / "figure.png").read_bytes()
    assert not plt.fignum_exists(figure.number)
    with Image.open(tmp_path / "deep" / "figure.png") as image:
        assert image.format == "PNG"
        assert 600 < image.width < 1200
