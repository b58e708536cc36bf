"""Intervals, saving, progress and plots."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from eurosat_utils import Progress, atomic_path, plot_tiles, save_figure, wilson_interval


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


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (5, 4), (-1, 4)])
def test_wilson_interval_of_nothing_is_an_error(correct, total):
    with pytest.raises(ValueError, match=f"{correct} of {total} is not a proportion"):
        wilson_interval(correct, total)


def test_file_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "new" / "table.csv"
    for before in ([], [target]):
        with pytest.raises(RuntimeError), atomic_path(target) as path:
            path.write_text("half")
            raise RuntimeError
        assert list(target.parent.iterdir()) == before
        with atomic_path(target) as path:
            path.write_text("whole")
            assert target.exists() == bool(before)
        assert target.read_text() == "whole"


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when they are told to."""
    now = [0.0]
    monkeypatch.setattr("eurosat_utils.time.perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("costs", "epoch", "left"),
    [
        ([1], 0, "50 s"),  # half of the only epoch
        ([1, 3], 0, "5.8 min"),  # the second costs three times as much
        ([1, 1, 2, 4], 3, "50 s"),  # resumed in the last
    ],
)
def test_progress_tells_share_speed_and_time_left(capsys, clock, costs, epoch, left):
    progress = Progress("fine-tuning", 1600, costs)
    progress.set_params({"steps": 40})
    progress.on_epoch_begin(epoch)
    for step in range(20):
        clock[0] += 60 if step < 3 else 2.5  # the first steps include compiling
        progress.on_train_batch_end(step, {"loss": 1})
    line = capsys.readouterr().out.split("\r")[-1]
    assert line.strip() == f"fine-tuning: 50%, 16 tiles/s, {left} left"


def test_tiles_are_shown_below_their_titles_and_framed_by_correctness():
    tiles = np.full((3, 64, 64, 3), 77, np.uint8)
    figure = plot_tiles(tiles, ["a", "b\nc", "d"], columns=2, correct=[True, False, True])
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == ["a", "b\nc", "d"]
    np.testing.assert_array_equal(shown[0].images[0].get_array(), tiles[0])
    spines = [axis.spines["top"] for axis in shown]
    styles = [(spine.get_edgecolor(), spine.get_linestyle()) for spine in spines]
    assert styles[0] == styles[2] != styles[1]


def test_figure_is_saved_as_png_of_readable_size(tmp_path):
    figure = plt.figure(figsize=(8, 3.8))
    shown = save_figure(figure, tmp_path / "deep" / "figure.png")
    assert shown.data == (tmp_path / "deep" / "figure.png").read_bytes()
    assert not plt.fignum_exists(figure.number)
    with Image.open(tmp_path / "deep" / "figure.png") as image:
        assert image.format == "PNG"
        assert 600 < image.width < 1200
