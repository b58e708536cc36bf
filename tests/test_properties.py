"""What must hold for any input: splits, intervals, tiling and the reading of images."""

import contextlib
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from eurosat_utils import (
    CLASSES,
    TILE_SIZE,
    classify_image,
    read_image,
    split_tiles,
    wilson_interval,
)

thoroughly = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
seeds = st.integers(0, 2**32 - 1)


@thoroughly
@given(st.lists(st.integers(5, 40), min_size=10, max_size=10), seeds, seeds)
def test_any_split_is_complete_disjoint_stratified_and_repeatable(sizes, seed, order):
    rows = [
        (f"{label}/{label}_{n}.jpg", label)
        for label, size in zip(CLASSES, sizes, strict=True)
        for n in range(size)
    ]
    tiles = pd.DataFrame(rows, columns=["file", "label"])
    split = split_tiles(tiles, seed)
    assert sorted(split["file"]) == sorted(tiles["file"])
    counts = pd.crosstab(split["label"], split["split"])
    for part, share in {"train": 0.6, "validation": 0.2, "test": 0.2}.items():
        assert (counts[part] - share * counts.sum(axis=1)).abs().max() < 2
    pd.testing.assert_frame_equal(
        split, split_tiles(tiles.sample(frac=1, random_state=order), seed)
    )


@thoroughly
@given(
    st.integers(1, 10**6).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))
)
def test_any_interval_holds_the_share_is_symmetric_and_narrows(counts):
    correct, total = counts
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    assert wilson_interval(total - correct, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    more = wilson_interval(10 * correct, 10 * total)
    assert more[1] - more[0] < high - low


class MeanRed:
    """A stand-in for a model: the class is the mean red, from 0 to 9."""

    def predict_on_batch(self, tiles):
        return np.eye(len(CLASSES))[tiles[..., 0].mean(axis=(1, 2)).astype(int)]


@thoroughly
@given(st.integers(64, 200), st.integers(64, 200), st.integers(8, 64), seeds)
def test_any_tiling_covers_each_pixel_once_with_the_nearest_tile(
    tmp_path, height, width, stride, seed
):
    squares = np.random.default_rng(seed).integers(0, 10, (4, 4), np.uint8)
    red = np.kron(squares, np.ones((64, 64), np.uint8))[:height, :width]
    Image.fromarray(np.stack([red, red + 1, red + 1], axis=-1)).save(tmp_path / "image.png")
    with contextlib.redirect_stdout(io.StringIO()):
        table = classify_image(MeanRed(), tmp_path / "image.png", stride)
    covered = np.zeros((height, width), int)
    for row in table.itertuples():
        part = slice(row.top, row.top + row.height), slice(row.left, row.left + row.width)
        covered[part] += 1
        assert row.height <= TILE_SIZE
        assert row.width <= TILE_SIZE
    assert (covered == 1).all()
    first = table.iloc[0]
    assert first["label"] == CLASSES[int(red[:64, :64].mean())]
    assert first["red"] == pytest.approx(red[:64, :64].mean())


@thoroughly
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["RGB", "L", "P"]),
    st.sampled_from(["png", "tif"]),
    seeds,
)
def test_any_image_is_read_as_pillow_reads_it(tmp_path, height, width, mode, suffix, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / f"image.{suffix}")
    read = read_image(tmp_path / f"image.{suffix}").pixels
    np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")))


@thoroughly
@given(
    st.sampled_from(["png", "tif", "jpg"]),
    st.lists(st.tuples(seeds, st.integers(0, 255)), max_size=8),
    seeds,
)
def test_any_damaged_image_is_read_or_refused_with_its_name(tmp_path, suffix, changes, end):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 80, 3), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    path.write_bytes(content[: end % (2 * len(content))])
    try:
        assert read_image(path).pixels.dtype == np.uint8
    except ValueError as error:
        assert str(path) in str(error)
