"""Images of any size and kind: how they are read, cut and mapped, and why some cannot be."""

import io
import itertools
import sys
import tracemalloc
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from matplotlib import pyplot as plt
from PIL import Image, ImageOps
from rasterio.enums import ColorInterp

import eurosat_utils as eu

UTM = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 600_000, 0, -10, 5_300_040)}  # m
LOSSLESS = {"PNG": {}, "GTiff": {}, "JP2OpenJPEG": {"REVERSIBLE": "YES", "QUALITY": "100"}}
PIXELS = np.random.default_rng(0).integers(8, 256, (70, 90, 3), np.uint8)
STEPS = np.repeat([0, 1, 1375, 2750, 9000], 20)[:, None, None] * np.ones((1, 80, 3), int)
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


class MeanRed:
    """A stand-in for a model: the mean red says the class, 25 steps each."""

    def predict_on_batch(self, tiles):
        assert (tiles.dtype, tiles.shape[1:]) == (np.uint8, (64, 64, 3))
        return 0.9 * np.eye(10)[(tiles[..., 0].mean(axis=(1, 2)) // 25).astype(int)] + 0.01


def make_scene(classes):
    """Return an image `(rows * 64, columns * 64, 3)` of squares whose red says their class."""
    red = np.kron(25 * np.array(classes) + 10, np.ones((64, 64), int))
    return np.stack([red, red // 2, 255 - red], axis=-1).astype(np.uint8)


MODEL = MeanRed()
TRAINING_COLOURS = np.repeat(make_scene([range(10)])[0, ::64], 2, axis=0)


def write_image(path, pixels, roles="", mask=None, **options):
    """Write `(height, width, bands)` with GDAL, which knows more kinds of images than Pillow."""
    height, width, count = pixels.shape
    options = {"driver": "GTiff", "dtype": pixels.dtype, "count": count} | options
    options |= {"height": height, "width": width}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK="YES"), rasterio.open(path, "w", **options) as file:
        if roles:
            file.colorinterp = [ColorInterp[role] for role in roles.split()]
        file.write(np.moveaxis(pixels, -1, 0))
        if mask is not None:
            file.write_mask(mask)
    return path


def test_every_kind_of_8_bit_image_is_read_as_rgb(tmp_path):
    kinds = {"png": "RGB RGBA P L LA 1", "jpg": "RGB L CMYK"}
    kinds |= {"tif": "RGB RGBA L LA", "jp2": "RGB RGBA L LA"}
    for suffix, modes in kinds.items():
        for mode in modes.split():
            path = tmp_path / f"{mode}.{suffix}"
            Image.fromarray(PIXELS).convert(mode).save(path)
            with Image.open(path) as image:
                expected = np.asarray(image.convert("RGB"))
            np.testing.assert_array_equal(eu.read_image(path).pixels, expected, path.name)


def test_tile_gets_the_same_pixels_as_in_training_turned_as_a_viewer_does(tmp_path):
    path, exif = tmp_path / "tile.jpg", Image.Exif()
    for orientation, subsampling in itertools.product(range(1, 9), ("4:2:0", "4:4:4")):
        exif[0x0112] = orientation
        Image.fromarray(PIXELS[:64, :64]).save(path, exif=exif, subsampling=subsampling)
        tile = Image.fromarray(eu.load_tiles(tmp_path, [path.name])[0])
        tile.info["exif"] = exif.tobytes()
        expected = np.asarray(ImageOps.exif_transpose(tile))
        np.testing.assert_array_equal(eu.read_image(path).pixels, expected)


def test_bands_are_found_by_their_colour_in_any_order(tmp_path):
    bands = dict(zip(("red", "green", "blue"), np.moveaxis(PIXELS, -1, 0), strict=True))
    bands["undefined"] = PIXELS[::-1, :, 0]
    for roles in itertools.permutations(bands):
        path, image = tmp_path / "image.tif", np.dstack([bands[role] for role in roles])
        write_image(path, image, " ".join(roles), photometric="minisblack")
        np.testing.assert_array_equal(eu.read_image(path).pixels, PIXELS)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_no_data_are_what_is_transparent_masked_or_declared_so_in_all_bands(tmp_path, kind):
    left = np.arange(90) + np.zeros((70, 1)) < 45
    alpha, grey = np.where(left, 0, 200), PIXELS[..., 0]
    declared = np.where(left[..., None], 7, PIXELS)
    declared[0, -1, 1:] = 7  # in two bands of three: a dark pixel, perhaps
    cases = [
        ([PIXELS, grey, alpha], {"roles": "red green blue undefined alpha"}),
        ([alpha, PIXELS], {"roles": "alpha red green blue"}),
        ([alpha, PIXELS], {"roles": "alpha red green blue", "nodata": 7}),
        ([grey, alpha], {"roles": "gray alpha"}),
        ([PIXELS], {"mask": 255 * ~left}),
        ([declared], {"nodata": 7}),
    ]
    if kind == np.float32:
        cases.append(([np.where(left[..., None], np.nan, PIXELS)], {}))
    for bands, options in cases:
        path, image = tmp_path / "image.tif", np.dstack(bands).astype(kind)
        write_image(path, image, photometric="minisblack", **options)
        known = eu.read_image(path, (0, 255)).pixels.any(axis=-1)
        np.testing.assert_array_equal(known, ~left, str(options))
    white = np.where(left[..., None], 255, 0 * PIXELS + 90)
    path = write_image(tmp_path / "a.jpg", white.astype(np.uint8), driver="JPEG", nodata=255)
    wrong = eu.read_image(path).pixels.any(axis=-1) == left
    assert wrong.mean() < 0.05  # but for what compression blurs


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("driver", LOSSLESS)
def test_16_bits_are_scaled_as_those_of_eurosat_were_not_cut(tmp_path, driver, bands):
    bits = {"nbits": 15} if driver == "JP2OpenJPEG" else {}  # as those of Sentinel-2
    path, image = tmp_path / "image", STEPS[..., :bands].astype(np.uint16)
    write_image(path, image, driver=driver, **LOSSLESS[driver], **bits)
    several = None, (0, 65535), np.array([1000, 3750])
    read = [eu.read_image(path, levels).pixels[::20, 0, bands - 1].tolist() for levels in several]
    assert read == [[0, 1, 128, 255, 255], [0, 1, 6, 12, 36], [0, 1, 36, 163, 255]]


@pytest.mark.parametrize("kind", ["int16", "uint32", "float32", "float64"])
def test_other_numbers_need_levels_and_are_read_with_them(tmp_path, kind):
    unit = 1e-4 if kind.startswith("float") else 1
    path = write_image(tmp_path / "image.tif", (unit * STEPS).astype(kind))
    assert list(eu.read_image(path, (0, 2750 * unit)).pixels[::20, 0, 0]) == [0, 1, 128, 255, 255]
    with pytest.raises(ValueError, match=f"{kind} values need levels"):
        eu.read_image(path)


def test_images_that_cannot_be_used_say_why(tmp_path, monkeypatch):
    monkeypatch.setattr(eu, "MAX_PIXELS", 6500)
    grey = PIXELS[..., :1]
    for name, image, options, reason in (
        ("white.tif", grey, {"photometric": "miniswhite"}, "white as 0"),
        ("bits.tif", grey // 16, {"nbits": 4}, "fewer than 8 bits"),
        ("two.tif", PIXELS[..., :2], {}, "2 bands.* instead of"),
        ("infrared.tif", PIXELS, {"roles": "nir red green"}, "instead of red, green, blue"),
        ("large.tif", np.ones((70, 100, 3), np.uint8), {}, "more than 6,500 pixels"),
        ("small.png", PIXELS[:63], {"driver": "PNG"}, "90x63 pixels, smaller than a tile"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{reason}"):
            eu.classify_image(MODEL, write_image(tmp_path / name, image, **options))
    Image.fromarray(PIXELS).convert("P").save(tmp_path / "palette.tif")
    virtual = '<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand/></VRTDataset>'
    (tmp_path / "virtual.png").write_text(virtual)  # such a file could refer to others
    for name in ("palette.tif", "virtual.png", "missing.png"):
        with pytest.raises((OSError, ValueError), match=name):
            eu.classify_image(MODEL, tmp_path / name)


@pytest.mark.parametrize("driver", ["JPEG", *LOSSLESS])
def test_truncated_image_is_refused_instead_of_filled_up(tmp_path, driver):
    path = tmp_path / "image"
    for kind in ("uint8",) if driver == "JPEG" else ("uint8", "uint16"):
        write_image(path, PIXELS.astype(kind), driver=driver, **LOSSLESS.get(driver, {}))
        whole = path.read_bytes()
        for share in (0.3, 0.6, 0.9):
            path.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(OSError):
                eu.read_image(path)


@pytest.mark.parametrize("levels", [(3750, 1000), (0, 0), (0, np.nan), (0, 1, 2), (0, np.inf)])
def test_impossible_levels_are_refused_whatever_the_image(tmp_path, levels):
    Image.fromarray(PIXELS).save(tmp_path / "image.png")
    with pytest.raises(ValueError):
        eu.classify_image(MODEL, tmp_path / "image.png", levels=levels)


def test_pixels_of_another_size_on_the_ground_are_a_caution(tmp_path):
    for crs, transform, metres in (
        ("EPSG:32632", (6, 8, 600_000, 8, -6, 5_300_040), (10, 10)),  # rotated
        ("EPSG:32632", (10, 0, 600_000, 0, -5, 5_300_040), (10, 5)),
        ("EPSG:4326", (1.8e-4, 0, 9, 0, -9e-5, 60), (10, 10)),  # degrees
        ("EPSG:3857", (20, 0, 1_000_000, 0, -20, 8_399_738), (10, 10)),  # at 60 degrees north
        ("EPSG:3857", (10, 0, 20_037_508.3 - 455, 0, -10, 350), (10, 10)),  # date line
        ("EPSG:2264", (3.28, 0, 2e6, 0, -3.28, 6e5), (1, 1)),  # feet
        ("EPSG:32632", (1e9, 0, 6e15, 0, -10, 5e6), (np.nan, np.nan)),  # nowhere
    ):
        path, place = tmp_path / "image.tif", {"crs": crs, "transform": rasterio.Affine(*transform)}
        picture = eu.read_image(write_image(path, PIXELS, **place))
        assert eu.pixel_metres(picture) == pytest.approx(metres, abs=0.2, nan_ok=True)
        assert bool(picture.cautions) == (metres != (10, 10))
    with pytest.warns(UserWarning, match=r"image\.tif: pixels of .* 10 m"):
        eu.classify_image(MODEL, path)
    write_image(path, PIXELS, transform=rasterio.Affine(60, 0, 0, 0, -60, 0))  # of what?
    assert "unknown size" in eu.read_image(path).cautions[0]


def test_whole_sentinel_2_scene_needs_less_than_2_gb(tmp_path):
    """Measured on a tenth of its width; TensorFlow and GDAL need the other GB."""
    kind = {"driver": "GTiff", "height": 10_980, "width": 1098, "count": 3, "dtype": "uint16"}
    kind |= {"tiled": True, "blockxsize": 1024, "blockysize": 1024, "sparse_ok": True}
    with rasterio.open(tmp_path / "scene.tif", "w", **kind) as file:  # nearly empty
        line = 11 * make_scene([range(10)]).astype(np.uint16)
        file.write(np.moveaxis(line, -1, 0), window=((10_916, 10_980), (0, 640)))
    tracemalloc.start()
    table = eu.classify_image(MODEL, tmp_path / "scene.tif")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 10 * peak < 1e9
    assert eu.GDAL_CACHE < 0.5e9
    assert table["label"].tolist() == [*[eu.NO_DATA] * 18 * 171, *eu.CLASSES, *[eu.NO_DATA] * 8]


def test_tiles_are_cut_where_they_are(tmp_path):
    classes = np.random.default_rng(0).integers(0, 10, (3, 70))  # wider than a batch
    path = write_image(tmp_path / "scene.tif", make_scene(classes), **UTM)
    table = eu.classify_image(MODEL, path)
    assert list(table["label"]) == list(np.take(eu.CLASSES, classes.flat))
    assert list(table["top"]) == list(np.repeat([0, 64, 128], 70))
    assert list(table["left"]) == list(np.tile(np.arange(70) * 64, 3))
    np.testing.assert_array_equal(table["red"], 25 * classes.ravel() + 10)
    assert table.loc[0, ["x", "y"]].tolist() == [600_320, 5_299_720]  # the middle of the tile
    pd.testing.assert_frame_equal(table, eu.classify_image(MODEL, eu.read_image(path)))
    expected = eu.classify_image(MODEL, make_scene(classes))
    pd.testing.assert_frame_equal(table.drop(columns=["x", "y"]), expected)


def test_tiling_covers_each_pixel_once_with_the_nearest_tile():
    random = np.random.default_rng(0)
    for _ in range(30):
        (height, width), stride = random.integers(64, 200, 2), random.integers(8, 65)
        image = random.integers(1, 250, (height, width, 3), np.uint8)
        table = eu.classify_image(MODEL, image, stride)
        covered = np.zeros((height, width), int)
        for part in table.itertuples():
            covered[part.top : part.top + part.height, part.left : part.left + part.width] += 1
        assert (covered == 1).all()
        assert table[["height", "width"]].max().max() <= 64
        assert table["blue"].iloc[-1] == pytest.approx(image[-64:, -64:, 2].mean(), abs=1e-6)


def test_stride_sharpens_the_map():
    expected = np.take(eu.CLASSES, [1, 3, 5]).tolist()  # half 1 and half 5 looks like 3
    for stride in (32, 64 / 2):
        table = eu.classify_image(MODEL, make_scene([[1, 5]]), stride)
        assert table["left"].tolist() == [0, 48, 80]
        assert table["label"].tolist() == expected
    for stride in (0, 65, 1.5, "32", None):
        with pytest.raises(ValueError, match=f"from 1 to 64, not {stride!r}"):
            eu.classify_image(MODEL, make_scene([[1, 5]]), stride)


def test_tiles_without_data_get_no_class_and_no_share_of_the_area():
    scene = make_scene([[1, 5, 9]])
    scene[:, 64:128] = 0
    scene[0, 64] = 255  # not enough
    scene[:2, 128:] = 0  # not too many
    table = eu.classify_image(MODEL, scene)
    assert table["label"].tolist() == [eu.CLASSES[1], eu.NO_DATA, eu.CLASSES[9]]
    assert table["probability"].isna().tolist() == [False, True, False]
    assert table["red"].iloc[2] == 235  # of what is there
    assert eu.area_shares(table).to_dict() == {eu.CLASSES[1]: 0.5, eu.CLASSES[9]: 0.5}


def test_arrays_that_are_no_8_bit_rgb_are_refused_and_so_are_levels_for_them():
    scene = make_scene([[1, 5], [9, 3]])
    table, grey = eu.classify_image(MODEL, scene), scene[..., 0]
    images = [10 * scene.astype(np.uint16), scene > 99, scene / 255, np.dstack([scene, grey])]
    for image in (*images, grey, np.moveaxis(scene, -1, 0), Image.fromarray(scene)):
        for function, *arguments in (
            (eu.classify_image, MODEL, image),
            (eu.classify_image, MODEL, eu.Picture(image)),
            (eu.plot_land_cover, image, table),
            (eu.plot_tiles, [image], [""]),
        ):
            with pytest.raises(ValueError, match=r"instead of uint8 \(height, width, 3\), RGB"):
                function(*arguments)
    with pytest.raises(ValueError, match="levels are for files"):
        eu.classify_image(MODEL, scene, levels=(0, 2750))


def test_unusual_colours_are_further_away_than_training_tiles_are():
    training = np.random.default_rng(0).integers(0, 50, (1000, 3))
    colours = np.array([training[0], [200, 200, 200], training[5] + [0, 0, 1]])
    assert eu.unusual_colours(colours, training).tolist() == [False, True, False]


def test_cautions_stand_on_the_map_itself_and_in_the_overview(tmp_path, monkeypatch):
    scene, figures = make_scene([[1, 5], [1, 3]]), []
    scene[:64, :64, 2], scene[64:, 64:] = 0, 0
    place = UTM | {"transform": rasterio.Affine(20, 0, 600_000, 0, -20, 5_300_040)}
    path = write_image(tmp_path / "scene.tif", scene, **place)
    monkeypatch.setattr(eu, "save_figure", lambda figure, *_, **__: figures.append(figure))
    overview = eu.map_images(MODEL, path, tmp_path / "maps", TRAINING_COLOURS)
    (figure,) = figures
    for caution in ("pixels of 20 x 20 m", "33% of the tiles have unusual colours"):
        assert caution in figure.get_suptitle()
        assert caution in overview.loc[0, "warning"]
    assert figure.axes[1].collections[0].get_array()[0].tolist() == [1, 5]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert (legend[0], legend[-1]) == (f"{eu.CLASSES[1]} 66.7%", "unusual colours")
    plt.close(figure)


def test_figures_are_the_same_whatever_a_matplotlibrc_says(tmp_path):
    scene, shown = make_scene([[1, 5], [9, 3]]), []
    Image.fromarray(scene).save(tmp_path / "scene.png")
    for style in ({}, {"image.origin": "lower", "savefig.pad_inches": 2, "savefig.dpi": 30}):
        with plt.rc_context(style):
            eu.map_images(MODEL, tmp_path / "scene.png", tmp_path / "maps", TRAINING_COLOURS)
            shown.append(np.array(Image.open(tmp_path / "maps" / "scene_map.png")))
            table = eu.classify_image(MODEL, scene)
            for figure in (eu.plot_tiles([scene], [""]), eu.plot_land_cover(scene, table)):
                figure.canvas.draw()
                shown.append(np.array(figure.canvas.buffer_rgba()))
    plt.close("all")
    for usual, other in zip(shown[:3], shown[3:], strict=True):
        np.testing.assert_array_equal(usual, other)


def test_geotiff_lies_where_the_image_does_and_is_never_half_written(tmp_path, monkeypatch):
    scene = make_scene([[1, 5, 9], [2, 4, 6]])
    scene[64:, :64] = 0
    path, picture = tmp_path / "scene_land_cover.tif", eu.Picture(scene, **UTM)
    table = eu.classify_image(MODEL, picture)
    eu.write_land_cover(path, table, picture)
    with rasterio.open(path) as file:
        assert (file.crs, file.transform, file.nodata) == (UTM["crs"], UTM["transform"], 0)
        codes, palette, tags = file.read(1), file.colormap(1), file.tags(1)
    np.testing.assert_array_equal(codes, np.kron([[2, 6, 10], [0, 5, 7]], np.ones((64, 64))))
    for code, (name, colour) in enumerate(eu.CLASS_COLOURS.items(), 1):
        assert tags[f"class_{code}"] == name
        assert "#{:02x}{:02x}{:02x}".format(*palette[code][:3]) == colour

    def write_half(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("No space left on device")

    whole = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match="No space left"):
        eu.write_land_cover(path, table.assign(label=eu.NO_DATA), picture)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == whole


def test_images_are_listed_in_order_and_those_of_one_name_refused(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.tiff", "d.jp2", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    names = ["a.jpeg", "b.PNG", "c.tiff", "d.jp2"]
    assert [path.name for path in eu.list_images(tmp_path)] == names
    (tmp_path / "empty").mkdir()
    for missing, reason in (("nowhere", "nowhere does not exist"), ("empty", "holds no image")):
        with pytest.raises(FileNotFoundError, match=reason):
            eu.list_images(tmp_path / missing)
    (tmp_path / "empty" / "B.jpg").touch()
    for others in (tmp_path / "empty", tmp_path / "b.PNG"):
        with pytest.raises(ValueError, match=r"b\.PNG, .*Rename"):
            eu.map_images(MODEL, [tmp_path, others], tmp_path / "maps", TRAINING_COLOURS)
    assert not (tmp_path / "maps").exists()


@pytest.fixture
def images(tmp_path):
    """A folder with a scene, one with coordinates, a tile, and three that cannot be used."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(make_scene([[1, 5], [1, 3]])).save(folder / "scene.png")
    whole = (folder / "scene.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    write_image(folder / "Łódź.tif", make_scene([[2, 2]]), **UTM)
    Image.fromarray(make_scene([[7]])).save(folder / "麦田.png")
    Image.new("RGB", (63, 64), "green").save(folder / "small.png")
    Image.new("RGB", (128, 128)).save(folder / "black.png")
    return folder


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run `main` as if the project lay in `tmp_path`; return its exit code and what it says."""
    (tmp_path / "results").mkdir()
    np.save(tmp_path / "results" / "training_colours.npy", TRAINING_COLOURS)
    monkeypatch.setattr(eu, "__file__", str(tmp_path / "eurosat_utils.py"))
    monkeypatch.setattr(eu, "open_model", lambda path: MODEL)
    monkeypatch.setattr(eu, "read_run", lambda results, path: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["eurosat_utils.py", *map(str, arguments)])
        console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")  # of Windows, into a file
        with redirect_stdout(console), redirect_stderr(io.StringIO()) as errors:
            try:
                code = eu.main()
            except SystemExit as stop:
                code = stop.code
        console.flush()
        return code, console.buffer.getvalue().decode("cp1252") + errors.getvalue()

    return run


def test_each_image_is_mapped_and_bad_ones_do_not_stop_the_others(tmp_path, images, command):
    code, said = command(images)
    maps = tmp_path / "results" / "own_images" / "images"
    assert code == 1
    assert rf"\u0141ód\u017a.tif: {eu.CLASSES[2]} 100.0%" in said
    assert rf"\u9ea6\u7530.png: {eu.CLASSES[7]} 100.0%" in said
    assert f"Maps and tables are in {maps}" in said
    files = ["overview.csv", "scene_map.png", "scene_tiles.csv"]
    files += ["Łódź_land_cover.tif", "Łódź_map.png", "Łódź_tiles.csv"]
    assert sorted(path.name for path in maps.iterdir()) == files
    rows = pd.read_csv(maps / "overview.csv", keep_default_na=False, index_col="image")
    assert list(rows.index) == sorted(path.name for path in images.iterdir())
    reasons = {"black.png": "no data", "broken.png": "truncated", "small.png": "63x64 pixels"}
    for name, problem in rows["problem"].items():
        assert reasons.get(name, "") in problem
        assert bool(problem) == (name in reasons) == (f"{name}: not used, {problem}" in said)
    assert rows.loc["scene.png", "land_cover"].startswith(f"{eu.CLASSES[1]} 50.0%, ")
    assert rows["warning"].eq("").all()


def test_command_takes_options_and_says_in_a_sentence_what_is_wrong(tmp_path, images, command):
    options = ("--output", tmp_path / "maps", "--stride", 32, "--levels", 0, 255)
    assert command(images / "scene.png", images / "Łódź.tif", *options)[0] == 0
    assert len(pd.read_csv(tmp_path / "maps" / "scene_tiles.csv")) == 9
    for arguments, code, reasons in (
        ([tmp_path / "nowhere"], 2, ["nowhere does not exist."]),
        ([images, "--levels", 3750, 1000], 2, ["the first one smaller"]),
        ([images, "--results", tmp_path], 2, ["training_colours.npy"]),
        (["--help"], 0, ["images", "--levels", "--stride", "--output", "--model", "--results"]),
    ):
        found, said = command(*arguments)
        assert found == code
        assert all(reason in said for reason in reasons)
    assert not (tmp_path / "results" / "own_images").exists()
