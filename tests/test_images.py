"""Images of any size and kind: how they are read, cut and mapped, and what is said of those that cannot be."""

import json
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
import rasterio
from conftest import REPOSITORY, notebook_functions
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from eurosat_utils import CLASSES, NO_DATA, classify_image, open_image

LEVELS = np.arange(10) * 25 + 10  # the stand-in answers with the class whose level is nearest to the mean red


@pytest.fixture(scope="module")
def model():
    """A stand-in that tells classes by their mean red: softmax over minus the squared distance to each level."""
    tile = keras.Input((64, 64, 3), dtype="uint8")
    mean = keras.layers.GlobalAveragePooling2D()(keras.ops.cast(tile, "float32"))
    dense = keras.layers.Dense(10, activation="softmax")
    model = keras.Model(tile, dense(mean))
    kernel = np.zeros((3, 10))
    kernel[0] = 2 * LEVELS
    dense.set_weights([kernel, -(LEVELS**2)])
    return model


def make_scene(classes, size=64):
    """Return an image `(rows * size, columns * size, 3)` of squares whose red says their class."""
    red = np.kron(LEVELS[np.array(classes)], np.ones((size, size), int))
    return np.stack([red, red // 2, 255 - red], axis=-1).astype(np.uint8)


def write_tiff(path, pixels, **options):
    """Write `(height, width, bands)` with GDAL, which knows more kinds of TIFF than Pillow."""
    height, width, count = pixels.shape
    kind = {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": pixels.dtype, **options}
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(path, "w", **kind) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    return path


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(1, 256, (70, 90, 3), np.uint8)


def read_all(path, **options):
    with open_image(path, **options) as (shape, read):
        image = read()
    assert image.shape == (*shape, 3)
    assert image.dtype == np.uint8
    return image


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_every_kind_of_8_bit_image_is_read_as_rgb(tmp_path, pixels, suffix):
    path = tmp_path / f"image.{suffix}"
    for mode in ("RGB", "RGBA", "P", "L", "LA"):
        image = Image.fromarray(pixels).convert(mode)
        image.save(path)
        np.testing.assert_array_equal(read_all(path), np.asarray(image.convert("RGB")), err_msg=mode)


def test_jpeg_is_read(tmp_path, pixels):
    Image.fromarray(pixels).convert("L").save(tmp_path / "grey.jpg")
    Image.fromarray(np.full((64, 64, 3), [200, 100, 50], np.uint8)).save(tmp_path / "colour.jpg", quality=95)
    grey, colour = read_all(tmp_path / "grey.jpg"), read_all(tmp_path / "colour.jpg")
    assert (grey[..., 0] == grey[..., 2]).all()
    np.testing.assert_allclose(colour[30, 30], [200, 100, 50], atol=2)


def test_bands_are_found_by_their_colour(tmp_path, pixels):
    names = ("blue", "green", "red", "nir")
    image = np.concatenate([pixels[..., ::-1], pixels[..., :1] // 2], axis=-1)
    path = write_tiff(tmp_path / "image.tif", image, photometric="minisblack")
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [ColorInterp[name if name != "nir" else "undefined"] for name in names]
    np.testing.assert_array_equal(read_all(path), pixels)


def test_transparent_pixels_are_black(tmp_path, pixels):
    image = Image.fromarray(pixels).convert("RGBA")
    image.paste((9, 9, 9, 0), (0, 0, 90, 10))
    image.save(tmp_path / "image.png")
    expected = pixels.copy()
    expected[:10] = 0
    np.testing.assert_array_equal(read_all(tmp_path / "image.png"), expected)


@pytest.mark.parametrize("bands", [1, 3])
def test_16_bit_values_are_scaled_as_those_of_eurosat_were(tmp_path, bands):
    values = np.array([0, 1, 1375, 2750, 9000], np.uint16)
    image = np.repeat(values, 20)[:, None, None] * np.ones((1, 80, bands), np.uint16)
    path = write_tiff(tmp_path / "image.tif", image, compress="deflate")
    assert list(read_all(path)[::20, 0, 0]) == [0, 1, 128, 255, 255]  # 0: no data
    assert list(read_all(path, levels=(0, 65535))[::20, 0, 2]) == [0, 1, 6, 12, 36]
    assert list(read_all(path, levels=(1000, 3750))[::20, 0, 1]) == [0, 1, 36, 163, 255]


def test_reduced_copy_keeps_the_proportions(tmp_path):
    Image.fromarray(make_scene([[1, 5], [9, 3]])).save(tmp_path / "image.png")
    with open_image(tmp_path / "image.png") as (_, read):
        small = read(shape=(8, 8))
    assert list(small[::4, ::4, 0].flat) == list(LEVELS[[1, 5, 9, 3]])


def test_tiles_are_cut_where_they_are(tmp_path, model):
    classes = np.random.default_rng(0).integers(0, 10, (3, 70))  # wider than a batch
    Image.fromarray(make_scene(classes)).save(tmp_path / "scene.png")
    table = classify_image(model, tmp_path / "scene.png")
    assert list(table["label"]) == [CLASSES[index] for index in classes.flat]
    assert list(table["top"]) == list(np.repeat([0, 64, 128], 70))
    assert list(table["left"]) == list(np.tile(np.arange(70) * 64, 3))
    assert set(table["height"]) == set(table["width"]) == {64}
    assert table["probability"].between(0.99, 1).all()
    np.testing.assert_allclose(table["red"], LEVELS[classes.ravel()])
    np.testing.assert_allclose(table["blue"], 255 - LEVELS[classes.ravel()])


@pytest.mark.parametrize("stride", [64, 48, 32, 17])
def test_parts_cover_the_image_once_whatever_its_size_and_the_stride(tmp_path, model, stride):
    for width, height in ((64, 64), (65, 64), (100, 191), (200, 130)):
        Image.new("RGB", (width, height), "white").save(tmp_path / "image.png")
        table = classify_image(model, tmp_path / "image.png", stride)
        covered = np.zeros((height, width), int)
        for part in table.itertuples():
            covered[part.top : part.top + part.height, part.left : part.left + part.width] += 1
        assert (covered == 1).all()
    assert len(classify_image(model, tmp_path / "image.png", 64)) == 4 * 3


def test_stride_sharpens_the_map(tmp_path, model):
    Image.fromarray(make_scene([[1, 5]])).save(tmp_path / "image.png")
    table = classify_image(model, tmp_path / "image.png", stride=32)
    assert list(table["left"]) == [0, 48, 80]
    assert list(table["label"]) == [CLASSES[1], CLASSES[3], CLASSES[5]]  # half 1 and half 5 looks like 3


def test_tiles_without_data_get_no_class(tmp_path, model):
    scene = make_scene([[1, 5, 9]])
    scene[:, 64:128] = 0
    scene[0, 64] = 255  # not enough
    scene[:10, 128:] = 0  # not too many
    Image.fromarray(scene).save(tmp_path / "image.png")
    table = classify_image(model, tmp_path / "image.png")
    assert list(table["label"].iloc[:2]) == [CLASSES[1], NO_DATA]
    assert list(table["probability"].isna()) == [False, True, False]
    assert table["red"].iloc[2] == LEVELS[9]  # of what is there


@pytest.mark.parametrize("stride", [0, 65, 32.0, "32", None])
def test_impossible_stride(model, stride):
    with pytest.raises(ValueError, match=f"from 1 to 64, not {stride!r}"):
        classify_image(model, "nothing.png", stride)


def test_images_that_cannot_be_used_say_why(tmp_path, model, pixels):
    random = np.random.default_rng(0)
    Image.fromarray(pixels[:63]).save(tmp_path / "small.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    for suffix in ("png", "jpg", "tif"):
        Image.fromarray(pixels).save(tmp_path / f"truncated.{suffix}")
        whole = (tmp_path / f"truncated.{suffix}").read_bytes()
        (tmp_path / f"truncated.{suffix}").write_bytes(whole[: len(whole) // 2])
    write_tiff(tmp_path / "bands.tif", random.integers(0, 255, (70, 70, 13), np.uint8))
    write_tiff(tmp_path / "numbers.tif", random.random((70, 70, 3), np.float32))
    write_tiff(tmp_path / "palette16.tif", random.integers(0, 9, (70, 70, 1), np.uint16), photometric="palette")
    Image.fromarray(pixels).convert("1").save(tmp_path / "bilevel.png")
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    (tmp_path / "other.png").write_text(
        '<VRTDataset rasterXSize="90" rasterYSize="70"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">whole.png</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
    )
    reasons = {
        "small.png": "90x63 pixels, smaller than a tile of 64x64",
        "empty.png": "not a readable JPEG, PNG or TIFF image",
        "text.jpg": "not a readable JPEG, PNG or TIFF image",
        "truncated.png": "damaged or incomplete .*Read Error",
        "truncated.jpg": "damaged or incomplete .*Premature end of JPEG file",
        "truncated.tif": "damaged or incomplete",
        "bands.tif": "13 bands instead of 3",
        "numbers.tif": r"not the usual whole numbers of 8 or 16 bits \(float32",
        "bilevel.png": r"not the usual whole numbers of 8 or 16 bits \(uint8, .*'NBITS': '1'",
        "palette16.tif": r"not the usual whole numbers of 8 or 16 bits \(uint16",
        "other.png": r"not a readable JPEG, PNG or TIFF image \(VRT\)",
        "missing.png": "No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=rf"{name}: .*{reason}"):
            classify_image(model, tmp_path / name)


SCENE_SIDE = 10_980  # pixels, of a Sentinel-2 scene at 10 m

MEASURE = """
import json, resource, sys, time
import keras
from eurosat_utils import classify_image
start = time.perf_counter()
table = classify_image(keras.saving.load_model(sys.argv[1]), sys.argv[2])
table.to_csv(sys.argv[3])
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, time.perf_counter() - start]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units elsewhere")
def test_whole_sentinel_2_scene_needs_less_than_2_gb(tmp_path, model):
    classes = np.random.default_rng(0).integers(0, 10, (172, 172))
    kind = {"driver": "GTiff", "height": SCENE_SIDE, "width": SCENE_SIDE, "count": 3, "dtype": "uint16"}
    transform = rasterio.transform.from_origin(600_000, 5_300_040, 10, 10)  # m
    with rasterio.open(tmp_path / "scene.tif", "w", compress="lzw", transform=transform, **kind) as file:
        for row, line in enumerate(classes):
            strip = make_scene([line])[: SCENE_SIDE - 64 * row, :SCENE_SIDE].transpose(2, 0, 1)
            values = np.rint((strip - 1.0) * (2750 / 254)).astype(np.uint16)
            file.write(values, window=Window(0, 64 * row, SCENE_SIDE, strip.shape[1]))
    model.save(tmp_path / "model.keras")
    arguments = [tmp_path / "model.keras", tmp_path / "scene.tif", tmp_path / "tiles.csv"]
    command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
    output = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    peak_gb, _ = json.loads(output.splitlines()[-1])
    assert peak_gb < 2
    table = pd.read_csv(tmp_path / "tiles.csv")
    assert len(table) == 172**2
    inside = (table["top"] <= 64 * 170) & (table["left"] <= 64 * 170)  # the last ones overlap their neighbours
    assert list(table["label"][inside]) == [CLASSES[index] for index in classes[:171, :171].flat]


@pytest.fixture(scope="module")
def inference():
    """The functions of Inference.ipynb."""
    return notebook_functions("Inference.ipynb")


def test_images_of_a_folder_are_listed_in_order(tmp_path, inference):
    for name in ("b.PNG", "a.jpeg", "c.tiff", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    assert [path.name for path in inference["list_images"](tmp_path)] == ["a.jpeg", "b.PNG", "c.tiff"]
    assert inference["list_images"](tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


def test_images_that_are_not_there_are_asked_for(tmp_path, inference):
    with pytest.raises(FileNotFoundError, match=r"IMAGES: .*nowhere does not exist"):
        inference["list_images"](tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"IMAGES: .* is empty\. Put images into it that end in \.jpg"):
        inference["list_images"](tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"IMAGES: .* holds no image, only notes\.txt\. Put images into it"):
        inference["list_images"](tmp_path)


def test_shares_count_the_area_that_has_data(tmp_path, inference, model):
    scene = np.concatenate([make_scene([[1, 5, 9]]), np.zeros((64, 192, 3), np.uint8)])[:, :160]
    Image.fromarray(scene).save(tmp_path / "image.png")
    table = classify_image(model, tmp_path / "image.png")
    shares = inference["area_shares"](table)
    assert shares.sum() == pytest.approx(1)
    assert shares[CLASSES[1]] == pytest.approx(64 / 160)
    figure = inference["plot_land_cover"](scene, table)
    assert [axis.get_title() for axis in figure.axes[:3]] == ["image", "land cover", "probability of that class"]
    codes = np.ma.masked_invalid(figure.axes[1].collections[0].get_array())
    assert list(codes[0, :2]) == [1, 5]
    assert codes.mask[1].all()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert f"{CLASSES[1]} 40.0%" in texts


def test_two_dask_workers_make_the_same_maps_as_one_process(tmp_path, model):
    pytest.importorskip("dask.distributed", reason="Dask is optional")
    from dask_scenes import classify_folder

    random = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(make_scene(random.integers(0, 10, (3, 4)))).save(tmp_path / f"scene_{number}.tif")
    (tmp_path / "broken.tif").write_text("not an image")
    model.save(tmp_path / "model.keras")
    tables = classify_folder(tmp_path / "model.keras", tmp_path)
    assert len(tables) == 5
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing holds no TIFF scene"):
        classify_folder(tmp_path / "model.keras", tmp_path / "nothing")
    assert "broken.tif" in tables.pop("broken.tif")
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, classify_image(model, tmp_path / name))
