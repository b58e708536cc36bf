"""Images of any size and kind: how they are read, cut and mapped, and why some cannot be."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from xml.etree import ElementTree

import keras
import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.shutil
from matplotlib import pyplot as plt
from PIL import Image, ImageOps
from rasterio.enums import ColorInterp
from rasterio.warp import transform as reproject
from rasterio.windows import Window

import eurosat_utils
from eurosat_utils import (
    CLASS_COLOURS,
    CLASSES,
    NO_DATA,
    Picture,
    area_shares,
    check_tiles,
    classify_image,
    distinct_names,
    figure_text,
    list_images,
    load_tiles,
    open_model,
    output_name,
    pixel_metres,
    plot_land_cover,
    read_image,
    read_run,
    split_digest,
    unusual_colours,
    write_land_cover,
)

REPOSITORY = Path(__file__).resolve().parent.parent
CLASS_LEVELS = np.arange(10) * 25 + 10  # the stand-in's answer: the nearest to the mean red
UTM = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 600_000, 0, -10, 5_300_040)}  # m
pytestmark = [
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # Keras, when it saves
]


@pytest.fixture(scope="module")
def model():
    """A stand-in that tells classes by their mean red: softmax over minus the squared distance."""
    tile = keras.Input((64, 64, 3), dtype="uint8")
    mean = keras.layers.GlobalAveragePooling2D()(keras.ops.cast(tile, "float32"))
    dense = keras.layers.Dense(10, activation="softmax")
    model = keras.Model(tile, dense(mean))
    kernel = np.zeros((3, 10))
    kernel[0] = 2 * CLASS_LEVELS
    dense.set_weights([kernel, -(CLASS_LEVELS**2)])
    return model


def make_scene(classes, size=64):
    """Return an image `(rows * size, columns * size, 3)` of squares whose red says their class."""
    red = np.kron(CLASS_LEVELS[np.array(classes)], np.ones((size, size), int))
    return np.stack([red, red // 2, 255 - red], axis=-1).astype(np.uint8)


def write_image(path, pixels, roles=None, mask=None, **options):
    """Write `(height, width, bands)` with GDAL, which knows more kinds of images than Pillow."""
    height, width, count = pixels.shape
    kind = {"driver": "GTiff", "height": height, "width": width, "count": count}
    with rasterio.open(path, "w", **kind | {"dtype": pixels.dtype} | options) as file:
        file.write(np.moveaxis(pixels, -1, 0))
        if roles:
            file.colorinterp = [ColorInterp[role] for role in roles]
        if mask is not None:
            file.write_mask(mask)
    return path


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(1, 256, (70, 90, 3), np.uint8)


@pytest.fixture
def hidden(pixels):
    """What is to be read where the left half of `pixels` has no data, and that half."""
    left = np.zeros(pixels.shape[:2], bool)
    left[:, :45] = True
    return np.where(left[..., None], 0, pixels), left


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_every_kind_of_8_bit_image_is_read_as_rgb(tmp_path, pixels, suffix):
    path = tmp_path / f"image.{suffix}"
    for mode in ("RGB", "RGBA", "P", "L", "LA", "1"):
        image = Image.fromarray(pixels).convert(mode)
        image.save(path)
        read = read_image(path).pixels
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")), err_msg=mode)


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_tile_gets_the_same_pixels_as_in_training(tmp_path, pixels, subsampling):
    for quality in (50, 75, 95):
        tile = Image.fromarray(pixels[:64, :64])
        tile.save(tmp_path / "tile.jpg", quality=quality, subsampling=subsampling)
        expected = load_tiles(tmp_path, ["tile.jpg"])[0]
        np.testing.assert_array_equal(read_image(tmp_path / "tile.jpg").pixels, expected)


def test_tile_file_gets_the_same_answer_both_ways(tmp_path, model, pixels):
    Image.fromarray(pixels[:64, :64]).save(tmp_path / "tile.jpg", quality=60)
    alone = model.predict(load_tiles(tmp_path, ["tile.jpg"]), verbose=0)[0]
    tile = classify_image(model, tmp_path / "tile.jpg").loc[0]
    assert tile["label"] == CLASSES[alone.argmax()]
    assert tile["probability"] == pytest.approx(alone.max(), abs=1e-6)


def test_large_progressive_jpeg_is_read(tmp_path):
    Image.new("RGB", (4000, 4000), (90, 120, 60)).save(
        tmp_path / "image.jpg", progressive=True, subsampling="4:4:4"
    )
    pixels = read_image(tmp_path / "image.jpg").pixels
    assert pixels.shape == (4000, 4000, 3)
    np.testing.assert_allclose(pixels[::999, ::999].reshape(-1, 3), [[90, 120, 60]] * 25, atol=2)


def test_too_large_an_image_is_refused_for_that_reason(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr(eurosat_utils, "MAX_PIXELS", 6000)
    for name in ("image.png", "image.tif"):
        Image.fromarray(pixels).save(tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}: 90x70 pixels are more than 6,000"):
            read_image(tmp_path / name)
    assert Image.MAX_IMAGE_PIXELS >= 10_980**2  # Pillow's own limit lets a scene pass


def test_bands_are_found_by_their_colour(tmp_path, pixels):
    image = np.concatenate([pixels[..., ::-1], pixels[..., :1] // 2], axis=-1)
    roles = ("blue", "green", "red", "undefined")
    path = write_image(tmp_path / "image.tif", image, roles, photometric="minisblack")
    np.testing.assert_array_equal(read_image(path).pixels, pixels)


@pytest.mark.parametrize("name", ["rgba.png", "rgba.tif", "la.png", "la.tif", "rgba16.png"])
def test_alpha_says_what_has_no_data(tmp_path, pixels, hidden, name):
    expected, left = hidden
    colours = pixels if "rgb" in name else pixels[..., :1]
    image = np.dstack([colours, np.where(left, 0, 255).astype(np.uint8)])
    if "16" in name:
        write_image(tmp_path / name, image.astype(np.uint16) * 257, driver="PNG")
    else:
        Image.fromarray(image).save(tmp_path / name)
    read = read_image(tmp_path / name, levels=(0, 65535)).pixels
    assert (read[left] == 0).all()
    assert (read[~left] > 0).all()
    if name == "rgba.tif":
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_alpha_is_found_in_whatever_band_and_depth(tmp_path, pixels, hidden, kind):
    _, left = hidden
    alpha = np.where(left, 0, 200).astype(np.uint8)
    extra = pixels[..., 0]
    for bands, roles in (
        ([pixels, extra, alpha], ["red", "green", "blue", "undefined", "alpha"]),
        ([alpha, pixels], ["alpha", "red", "green", "blue"]),
    ):
        image = np.dstack(bands).astype(kind)
        path = write_image(tmp_path / "image.tif", image, roles, photometric="minisblack")
        read = read_image(path, levels=(0, 255)).pixels
        assert (read[left] == 0).all()
        assert (read[~left] > 0).all()


def test_transparent_entries_of_a_palette_have_no_data(tmp_path):
    index = np.arange(70 * 70).reshape(70, 70) % 8
    image = Image.fromarray(index.astype(np.uint8))
    colours = np.random.default_rng(0).integers(1, 256, (8, 3), np.uint8)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "image.png", transparency=bytes([255, 0, 255, 0, 255, 255, 255, 255]))
    expected = np.where(np.isin(index, (1, 3))[..., None], 0, colours[index])
    np.testing.assert_array_equal(read_image(tmp_path / "image.png").pixels, expected)


@pytest.mark.parametrize("internal", ["YES", "NO"])
@pytest.mark.parametrize("kind", ["GTiff", "JPEG", "PNG", "JP2OpenJPEG"])
def test_masks_inside_and_beside_a_file_are_used(tmp_path, pixels, hidden, kind, internal):
    path, (expected, left) = tmp_path / "image", hidden
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        tiff = write_image(tmp_path / "source.tif", pixels, mask=255 * ~left)
    options = {"INTERNAL_MASK": internal} if kind == "JPEG" else {}
    options |= {"REVERSIBLE": "YES", "QUALITY": "100"} if kind == "JP2OpenJPEG" else {}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        rasterio.shutil.copy(tiff, path, driver=kind, **options)
    read = read_image(path)
    assert (read.pixels[left] == 0).all()
    assert (read.pixels[~left] > 0).any(axis=-1).all()
    assert not read.cautions
    if kind != "JPEG":
        np.testing.assert_array_equal(read.pixels, expected)


@pytest.mark.parametrize(
    ("kind", "nodata"),
    [("uint8", 7), ("uint16", 7), ("int16", -7), ("float32", 7), ("float32", np.nan)],
)
def test_nodata_values_are_no_data(tmp_path, pixels, hidden, kind, nodata):
    _, left = hidden
    image = np.where(left[..., None], nodata, np.maximum(pixels, 8.0)).astype(kind)
    path = write_image(tmp_path / "image.tif", image, nodata=nodata)
    read = read_image(path, levels=(0, 255)).pixels
    assert (read[left] == 0).all()
    assert (read[~left] > 0).all()


@pytest.mark.parametrize("bands", [1, 3])
def test_16_bit_values_are_scaled_as_those_of_eurosat_were(tmp_path, bands):
    values = np.array([0, 1, 1375, 2750, 9000], np.uint16)
    image = np.repeat(values, 20)[:, None, None] * np.ones((1, 80, bands), np.uint16)
    path = write_image(tmp_path / "image.tif", image, compress="deflate")

    def read(**options):
        return list(read_image(path, **options).pixels[::20, 0, bands - 1])

    assert read() == [0, 1, 128, 255, 255]  # 0: no data
    assert read(levels=(0, 65535)) == [0, 1, 6, 12, 36]
    assert read(levels=np.array([1000, 3750])) == [0, 1, 36, 163, 255]


@pytest.mark.parametrize("kind", ["int16", "uint32", "int32", "float32", "float64"])
def test_real_numbers_are_read_with_the_levels_given(tmp_path, pixels, kind):
    unit = 1e-4 if kind.startswith("float") else 1
    image = (pixels * 10.0 * unit).astype(kind)
    path = write_image(tmp_path / "image.tif", image)
    expected = write_image(tmp_path / "same.tif", (pixels * 10.0).astype(np.uint16))
    levels = (0, 2750 * unit)
    np.testing.assert_array_equal(read_image(path, levels).pixels, read_image(expected).pixels)
    low, high = ("0.00", "0.2") if unit < 1 else (r"\d+", "2")
    with pytest.raises(ValueError, match=rf"{kind} values, .* {low}.* to {high}.* Set LEVELS"):
        read_image(path)


def test_white_may_be_zero(tmp_path, pixels):
    for kind, most in ((np.uint8, 255), (np.uint16, 65535)):
        grey = pixels[..., :1].astype(kind) * (most // 255)
        path = write_image(tmp_path / "image.tif", grey, photometric="miniswhite")
        expected = write_image(tmp_path / "same.tif", most - grey, photometric="minisblack")
        read, same = (read_image(p, levels=(0, 65535)).pixels for p in (path, expected))
        np.testing.assert_array_equal(read, same)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_image_is_read_the_way_up_that_a_viewer_shows_it(tmp_path, pixels, suffix, orientation):
    path, exif = tmp_path / f"image.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        np.testing.assert_array_equal(
            read_image(path).pixels, np.asarray(ImageOps.exif_transpose(image))
        )


def test_old_pyramid_or_mask_beside_a_rewritten_file_is_not_used(tmp_path, pixels, hidden):
    path, mask = tmp_path / "image.tif", np.where(hidden[1], 0, 255).astype(np.uint8)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="NO", TIFF_USE_OVR="YES"):
        write_image(path, np.full_like(pixels, 9), mask=mask)
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2])
    for rewritten in (pixels, pixels[:66, :66]):
        Image.fromarray(rewritten).save(path)
        before = time.time() - 60
        os.utime(f"{path}.msk", (before, before))
        read = read_image(path)
        np.testing.assert_array_equal(read.pixels, rewritten)
        assert "mask image.tif.msk is not of this image" in read.cautions[0]
    os.utime(f"{path}.msk")  # new, but of another size
    np.testing.assert_array_equal(read_image(path).pixels, rewritten)


DEGREES = 10 / 111_195  # of 10 m along a meridian


@pytest.mark.parametrize(
    ("crs", "transform", "metres"),
    [
        ("EPSG:32632", (10, 0, 600_000, 0, -10, 5_300_040), (10, 10)),
        ("EPSG:32632", (1, 0, 600_000, 0, -1, 5_300_040), (1, 1)),
        ("EPSG:32632", (10, 0, 600_000, 0, -5, 5_300_040), (10, 5)),
        ("EPSG:32632", (6, 8, 600_000, 8, -6, 5_300_040), (10, 10)),  # rotated
        ("EPSG:32632", (3, 4, 600_000, 4, -3, 5_300_040), (5, 5)),
        ("EPSG:32632", (10, 10, 600_000, 0, -10, 5_300_040), (10, 14.1)),  # sheared
        ("EPSG:4326", (2 * DEGREES, 0, 9, 0, -DEGREES, 60), (10, 10)),
        ("EPSG:4326", (DEGREES, 0, 9, 0, -DEGREES, 60), (5, 10)),
        ("EPSG:3857", (20, 0, 1_000_000, 0, -20, 8_399_738), (10, 10)),  # at 60 degrees north
        ("EPSG:2264", (32.8, 0, 2e6, 0, -32.8, 6e5), (10, 10)),  # feet
        ("EPSG:4326", (DEGREES, 0, 180 - 45.5 * DEGREES, 0, -DEGREES, 0), (10, 10)),  # date line
        ("EPSG:32632", (1e9, 0, 6e15, 0, -10, 5e6), (np.nan, np.nan)),  # nowhere
    ],
)
def test_pixel_size_is_that_on_the_ground(tmp_path, model, pixels, crs, transform, metres):
    place = {"crs": crs, "transform": rasterio.Affine(*transform)}
    path = write_image(tmp_path / "image.tif", pixels, **place)
    picture = read_image(path)
    assert pixel_metres(picture) == pytest.approx(metres, rel=0.02, nan_ok=True)
    assert bool(picture.cautions) == (not all(8 <= size <= 12 for size in metres))
    if picture.cautions:
        with pytest.warns(UserWarning, match=r"image\.tif: pixels of .* 10 m"):
            classify_image(model, path)


def test_images_that_cannot_be_used_say_why(tmp_path, model, pixels):
    Image.fromarray(pixels[:63]).save(tmp_path / "small.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    write_image(tmp_path / "truncated.jp2", pixels, driver="JP2OpenJPEG")
    for suffix in ("png", "jpg", "tif", "jp2"):
        path = tmp_path / f"truncated.{suffix}"
        if suffix != "jp2":
            Image.fromarray(pixels).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    write_image(tmp_path / "bands.tif", np.repeat(pixels[..., :1], 13, axis=-1))
    write_image(tmp_path / "complex.tif", pixels.astype(np.complex64))
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    (tmp_path / "other.png").write_text(
        '<VRTDataset rasterXSize="90" rasterYSize="70"><VRTRasterBand dataType="Byte" band="1">'
        '<SimpleSource><SourceFilename relativeToVRT="1">whole.png</SourceFilename></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )
    reasons = {
        "small.png": "90x63 pixels, smaller than a tile of 64x64",
        "empty.png": "not a readable JPEG, PNG, TIFF or JPEG 2000 image",
        "text.jpg": "not a readable JPEG, PNG, TIFF or JPEG 2000 image",
        "truncated.png": "damaged or incomplete .*truncated",
        "truncated.jpg": "damaged or incomplete .*truncated",
        "truncated.tif": "damaged or incomplete",
        "truncated.jp2": "damaged or incomplete",
        "bands.tif": "13 bands instead of 3",
        "complex.tif": "complex numbers",
        "other.png": r"not a readable .* image \(VRT is not read\)",
        "missing.png": "No such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(ValueError, match=rf"{name}: .*{reason}"):
            classify_image(model, tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_name_that_is_not_utf_8_is_given_as_the_reason(tmp_path, pixels):
    path = tmp_path / os.fsdecode(b"field\xff.png")
    (tmp_path / "field.png").write_bytes(b"")
    Image.fromarray(pixels).save(tmp_path / "field.png")
    (tmp_path / "field.png").rename(path)
    with pytest.raises(ValueError, match=r"field\\xff\.png: its name is not UTF-8"):
        read_image(path)
    assert list_images(tmp_path) == [path]


@pytest.mark.parametrize(
    "levels", [(3750, 1000), (0, 0), (0, np.nan), (0, 1, 2), 2750, "09", (0, None), (0, np.inf)]
)
def test_impossible_levels(tmp_path, model, pixels, levels):
    Image.fromarray(pixels).save(tmp_path / "image.png")
    message = "LEVELS must be two numbers, the first one smaller"
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / "image.png", levels)
    with pytest.raises(ValueError, match=message):
        classify_image(model, tmp_path / "image.png", levels=levels)


# ---------------------------------------------------------------- tiles


def test_tiles_are_cut_where_they_are(model):
    classes = np.random.default_rng(0).integers(0, 10, (3, 70))  # wider than a batch
    table = classify_image(model, make_scene(classes))
    assert list(table["label"]) == [CLASSES[index] for index in classes.flat]
    assert list(table["top"]) == list(np.repeat([0, 64, 128], 70))
    assert list(table["left"]) == list(np.tile(np.arange(70) * 64, 3))
    assert set(table["height"]) == set(table["width"]) == {64}
    assert table["probability"].between(0.99, 1).all()
    np.testing.assert_allclose(table["red"], CLASS_LEVELS[classes.ravel()])
    np.testing.assert_allclose(table["blue"], 255 - CLASS_LEVELS[classes.ravel()])


def test_file_picture_and_pixels_give_the_same_table(tmp_path, model):
    scene = make_scene([[1, 5], [9, 3]])
    path = write_image(tmp_path / "scene.tif", scene, **UTM)
    table = classify_image(model, path, stride=32)
    pd.testing.assert_frame_equal(table, classify_image(model, read_image(path), stride=32))
    expected = classify_image(model, scene, stride=32)
    pd.testing.assert_frame_equal(table.drop(columns=["x", "y"]), expected)
    assert table.loc[0, ["x", "y"]].tolist() == [600_320, 5_299_720]  # the middle of the first tile
    assert table[["x", "y"]].iloc[-1].tolist() == [600_960, 5_299_080]


@pytest.mark.parametrize("stride", [64, 48, 32, 17])
def test_parts_cover_the_image_once_whatever_its_size_and_the_stride(model, stride):
    for width, height in ((64, 64), (65, 64), (100, 191), (200, 130)):
        table = classify_image(model, np.full((height, width, 3), 255, np.uint8), stride)
        covered = np.zeros((height, width), int)
        for part in table.itertuples():
            covered[part.top : part.top + part.height, part.left : part.left + part.width] += 1
        assert (covered == 1).all()


def test_stride_sharpens_the_map(model):
    table = classify_image(model, make_scene([[1, 5]]), stride=32)
    assert list(table["left"]) == [0, 48, 80]
    expected = [CLASSES[1], CLASSES[3], CLASSES[5]]  # half 1 and half 5 looks like 3
    assert list(table["label"]) == expected


def test_tiles_without_data_get_no_class(model):
    scene = make_scene([[1, 5, 9]])
    scene[:, 64:128] = 0
    scene[0, 64] = 255  # not enough
    scene[:10, 128:] = 0  # not too many
    table = classify_image(model, scene)
    assert list(table["label"].iloc[:2]) == [CLASSES[1], NO_DATA]
    assert list(table["probability"].isna()) == [False, True, False]
    assert table["red"].iloc[2] == CLASS_LEVELS[9]  # of what is there


@pytest.mark.parametrize("stride", [0, 65, 32.0, "32", None])
def test_impossible_stride(model, stride):
    with pytest.raises(ValueError, match=f"from 1 to 64, not {stride!r}"):
        classify_image(model, "nothing.png", stride)


# ---------------------------------------------------------------- cost

MEASURE = """
import resource, sys
import numpy as np
from eurosat_utils import CLASSES, classify_image
class Red:
    def predict_on_batch(self, tiles):
        return np.eye(10)[tiles[:, 0, 0, 0] // 25]
table = classify_image(Red(), sys.argv[1])
table.to_csv(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units elsewhere")
def test_whole_sentinel_2_scene_needs_less_than_2_gb(tmp_path):
    side, classes = 10_980, np.random.default_rng(0).integers(0, 10, (3, 172))
    kind = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint16"}
    path = tmp_path / "scene.tif"
    with rasterio.open(path, "w", sparse_ok=True, tiled=True, **kind, **UTM) as file:
        for row, line in enumerate(classes):  # the rest stays empty
            strip = make_scene([line])[:, :side].transpose(2, 0, 1)
            values = np.rint((strip - 1.0) * (2750 / 254)).astype(np.uint16)
            file.write(values, window=Window(0, 64 * row, side, 64))
    command = [sys.executable, "-c", MEASURE, str(path), str(tmp_path / "tiles.csv")]
    output = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert float(output.stdout.splitlines()[-1]) < 2
    labels = pd.read_csv(tmp_path / "tiles.csv")["label"].to_numpy().reshape(172, 172)
    assert labels[:3, :171].tolist() == np.take(CLASSES, classes)[:, :171].tolist()
    assert (labels[3:] == NO_DATA).all()


def test_memory_of_gdal_is_given_in_bytes():
    assert 64e6 < eurosat_utils.GDAL_OPTIONS["GDAL_CACHEMAX"] < 1e9


# ---------------------------------------------------------------- maps


def test_shares_count_the_area_that_has_data(model):
    scene = np.concatenate([make_scene([[1, 5, 9]]), np.zeros((64, 192, 3), np.uint8)])[:, :160]
    table = classify_image(model, scene)
    shares = area_shares(table)
    assert shares.sum() == pytest.approx(1)
    assert shares[CLASSES[1]] == pytest.approx(64 / 160)
    figure = plot_land_cover(scene, table, "a $scene$")
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert titles == ["image", "land cover", "probability of that class"]
    codes = np.ma.masked_invalid(figure.axes[1].collections[0].get_array())
    assert list(codes[0, :2]) == [1, 5]
    assert codes.mask[1].all()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert f"{CLASSES[1]} 40.0%" in texts
    plt.close(figure)


def test_warning_stands_on_the_map_and_unusual_tiles_are_hatched(model):
    scene = make_scene([[1, 5, 9]])
    table = classify_image(model, scene).assign(unusual=[False, True, False])
    figure = plot_land_cover(scene, table, "scene.png", ["33% of the tiles have unusual colours"])
    assert "Careful: 33% of the tiles have unusual colours" in figure.get_suptitle()
    hatched = [mesh for mesh in figure.axes[1].collections if mesh.get_hatch()]
    assert len(hatched[0].get_paths()) == 1
    assert "unusual colours 33.3%" in figure.legends[0].get_texts()[-1].get_text()
    plt.close(figure)


def test_colours_of_classes_are_told_apart():
    colours = [np.array(plt.matplotlib.colors.to_rgb(colour)) for colour in CLASS_COLOURS.values()]
    assert list(CLASS_COLOURS) == list(CLASSES)
    distances = [np.linalg.norm(a - b) for n, a in enumerate(colours) for b in colours[:n]]
    assert min(distances) > 0.3


def test_names_without_glyphs_make_no_boxes_and_no_warnings(model):
    scene = make_scene([[1, 5]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot_land_cover(scene, classify_image(model, scene), "田地 \udcff\n.png")
        figure.canvas.draw()
    assert figure.get_suptitle() == r"\u7530\u5730 \udcff\n.png"
    plt.close(figure)
    assert figure_text("a" * 50) == "a" * 39 + "…"


@pytest.mark.parametrize("stride", [64, 32, 17])
def test_map_lies_where_the_image_does(tmp_path, model, stride):
    scene = make_scene([[1, 5, 9], [2, 4, 6]])[:, :160]
    picture = Picture(scene, "scene.tif", rasterio.crs.CRS.from_epsg(32632), UTM["transform"])
    table = classify_image(model, picture, stride)
    write_land_cover(tmp_path / "scene_land_cover.tif", table, picture, stride)
    with rasterio.open(tmp_path / "scene_land_cover.tif") as file:
        codes, transform = file.read(1), file.transform
        assert file.crs == picture.crs
        assert file.nodata == 0
        assert (transform.a, transform.e) == (10 * stride, -10 * stride)
        palette = file.colormap(1)
        x, y = table[["x", "y"]].to_numpy().T
        found = [int(value[0]) for value in file.sample(zip(x, y, strict=True))]
        tags = file.tags(1)
    on_grid = ((x - 600_320) % (10 * stride) == 0) & ((y - 5_299_720) % (10 * stride) == 0)
    expected = [CLASSES.index(label) + 1 for label in table["label"]]
    assert np.array(found)[on_grid].tolist() == np.array(expected)[on_grid].tolist()
    # The tile that begins in the image's corner has its centre 32 pixels from it, in degrees, too.
    column, row = ~transform @ (600_320, 5_299_720)
    assert (column % 1, row % 1) == (0.5, 0.5)
    corner = reproject("EPSG:32632", "EPSG:4326", [600_000], [5_300_040])
    upper_left = transform @ (column - 32 / stride, row - 32 / stride)
    again = reproject("EPSG:32632", "EPSG:4326", *([value] for value in upper_left))
    np.testing.assert_allclose(corner, again, atol=1e-9)  # degrees
    for code, name in enumerate(CLASSES, 1):
        assert tags[f"class_{code}"] == name
        rgb = np.array(palette[code][:3]) / 255
        np.testing.assert_allclose(
            rgb, plt.matplotlib.colors.to_rgb(CLASS_COLOURS[name]), atol=4e-3
        )
    if shutil.which("gdalinfo"):
        command = ["gdalinfo", str(tmp_path / "scene_land_cover.tif")]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "Categories:" in said
    beside = ElementTree.parse(tmp_path / "scene_land_cover.tif.aux.xml")
    assert [name.text for name in beside.iter("Category")] == [NO_DATA, *CLASSES]
    with rasterio.open(tmp_path / "scene_probability.tif") as file:
        assert file.shape == codes.shape
        assert file.read(1).max() == pytest.approx(table["probability"].max())


def test_map_has_no_class_where_there_are_no_data(tmp_path, model):
    scene = make_scene([[1, 5]])
    scene[:, 64:] = 0
    picture = Picture(scene, "scene.tif", rasterio.crs.CRS.from_epsg(32632), UTM["transform"])
    write_land_cover(tmp_path / "a_land_cover.tif", classify_image(model, picture), picture, 64)
    with rasterio.open(tmp_path / "a_land_cover.tif") as file:
        assert file.read(1).tolist() == [[2, 0]]
    with rasterio.open(tmp_path / "a_probability.tif") as file:
        assert np.isnan(file.read(1)).tolist() == [[False, True]]


def test_full_disk_is_said_and_leaves_no_half_a_map(tmp_path, model, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    picture = Picture(make_scene([[1, 5]]), "scene.tif", UTM["crs"], UTM["transform"])
    table = classify_image(model, picture)
    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(
        OSError, match=r"scene_land_cover\.tif could not be written .*No space left"
    ):
        write_land_cover(tmp_path / "scene_land_cover.tif", table, picture, 64)
    assert list(tmp_path.iterdir()) == []


def test_unusual_colours_are_further_away_than_training_tiles_are():
    training = np.random.default_rng(0).integers(0, 50, (1000, 3))
    colours = np.array([training[0], [200, 200, 200], training[5] + [0, 0, 1]])
    assert unusual_colours(colours, training).tolist() == [False, True, False]


# ---------------------------------------------------------------- names, settings and runs


def test_images_of_a_folder_are_listed_in_order(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.tiff", "d.jp2", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    names = ["a.jpeg", "b.PNG", "c.tiff", "d.jp2"]
    assert [path.name for path in list_images(tmp_path)] == names
    assert list_images(str(tmp_path / "notes.txt")) == [tmp_path / "notes.txt"]
    (tmp_path / "folder.png").mkdir()
    several = list_images([tmp_path / "c.tiff", str(tmp_path)])
    assert [path.name for path in several] == ["c.tiff", "a.jpeg", "b.PNG", "d.jp2"]
    assert list_images(None) == []


def test_images_that_are_not_there_are_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"IMAGES: .*nowhere does not exist"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"IMAGES: .* is empty\. Put images into it that end in \.jpg"
    ):
        list_images(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        ValueError, match=r"IMAGES: .* holds no image, only notes\.txt\. Put images"
    ):
        list_images(tmp_path)


def test_names_of_outputs_identify_the_input(tmp_path, monkeypatch):
    places = ["scenes/2024.05", "scenes/2024.06", "x/imgs", "y/imgs", "s.png", "s.tif", "scenes"]
    for place in places[:4]:
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "x" / "imgs")
    names = [output_name(tmp_path / place) for place in places]
    names += [output_name(".."), output_name([tmp_path / "x", tmp_path / "y"])]
    assert len(set(names)) == len(names)
    assert output_name(".") == output_name(tmp_path / "x" / "imgs") == names[2]
    assert names[0].startswith("2024.05-")
    assert names[3].startswith("imgs-")
    assert all(Path(name).name == name not in (".", "..") for name in [*names, output_name("/")])


def test_files_of_a_map_do_not_overwrite_each_other(tmp_path):
    long = "a" * 239 + ".png"
    paths = [tmp_path / name for name in ("x/s.png", "y/S.png", "y/s.tif", long, "中.png")]
    names = distinct_names(paths)
    assert names[2] == "s.tif"
    assert names[4] == "中.png"
    assert len({name.casefold() for name in names}) == len(names)
    assert max(len(os.fsencode(name)) for name in names) < 150
    assert names[3].startswith("aaaa")


@pytest.fixture
def finished_run(tmp_path, model):
    """A folder with what a run of Training.ipynb leaves, as far as Inference.ipynb reads it."""
    rows = [
        (f"{label}/{label}_{n}.jpg", label, part)
        for label in CLASSES
        for n, part in enumerate(("train", "validation", "test"))
    ]
    split = pd.DataFrame(rows, columns=["file", "label", "split"])
    split.to_csv(tmp_path / "split.csv", index=False)
    model.save(tmp_path / "model.keras")
    record = {
        "parameters": {"IMAGES_PER_CLASS": None},
        "model_sha256": eurosat_utils.pooch.file_hash(tmp_path / "model.keras"),
        "split_sha256": split_digest(split),
        "metrics": {"accuracy": 0.9, "accuracy_95_percent_interval": [0.6, 0.98], "test_tiles": 10},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "test_predictions.csv").touch()
    np.save(tmp_path / "training_colours.npy", np.zeros((10, 3), np.uint8))
    return tmp_path


def test_run_is_read_if_its_files_belong_together(finished_run):
    model_path = finished_run / "model.keras"
    split, record = read_run(finished_run, model_path)
    assert len(split) == 30
    assert record["metrics"]["accuracy"] == 0.9
    assert open_model(model_path).output_shape == (None, 10)
    check_tiles(split[["file", "label"]], split, record)
    with pytest.raises(ValueError, match="1 tiles of the split are missing .*AnnualCrop_0"):
        check_tiles(split[1:], split, record)
    with pytest.raises(ValueError, match="2 tiles are not in the split"):
        check_tiles(split, split[2:], record)
    record["parameters"]["IMAGES_PER_CLASS"] = 3
    check_tiles(split, split[2:], record)


def test_files_of_different_runs_are_refused(finished_run):
    model_path = finished_run / "model.keras"
    (finished_run / "other.keras").write_bytes(model_path.read_bytes() + b"1")
    with pytest.raises(ValueError, match=r"other\.keras is not the model that .*run\.json"):
        read_run(finished_run, finished_run / "other.keras")
    split = (finished_run / "split.csv").read_text()
    (finished_run / "split.csv").write_text(split.replace("train", "test", 1))
    with pytest.raises(ValueError, match=r"split\.csv is not the split that .*run\.json"):
        read_run(finished_run, model_path)
    (finished_run / "split.csv").write_text(split)
    (finished_run / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json is damaged \(KeyError.* Restore the files"):
        read_run(finished_run, model_path)
    (finished_run / "split.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"Not there: .*split\.csv\. Run Training\.ipynb"):
        read_run(finished_run, model_path)


def test_two_dask_workers_make_the_same_maps_as_one_process(tmp_path, model):
    pytest.importorskip("dask.distributed", reason="Dask is optional")
    from dask_scenes import classify_folder

    random = np.random.default_rng(0)
    for number in range(4):
        scene = make_scene(random.integers(0, 10, (3, 4)))
        Image.fromarray(scene).save(tmp_path / f"scene_{number}.tif")
    (tmp_path / "broken.tif").write_text("not an image")
    model.save(tmp_path / "model.keras")
    tables = classify_folder(tmp_path / "model.keras", tmp_path)
    assert len(tables) == 5
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing holds no TIFF or JPEG 2000 scene"):
        classify_folder(tmp_path / "model.keras", tmp_path / "nothing")
    with pytest.raises(ValueError, match="LEVELS must be two numbers"):
        classify_folder(tmp_path / "model.keras", tmp_path, levels=(3750, 1000))
    assert "broken.tif" in tables.pop("broken.tif")
    for name, table in tables.items():
        pd.testing.assert_frame_equal(table, classify_image(model, tmp_path / name))
