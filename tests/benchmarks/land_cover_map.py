"""What mapping a large image costs, by file format, compared with `model.predict` in memory.

    python tests/benchmarks/land_cover_map.py models/eurosat_resnet50.keras

Prints, for each format: how long `read_image` takes against the format's fastest reading of the
whole (the ratio is to stay below 1.3). For strides of 64 and 32: how fast `classify_image` is
against `model.predict` on the same tiles, taking turns. At last the time and peak memory of a tenth
of a Sentinel-2 scene. `--side 512 --turns 1` tries it out quickly.
"""

import argparse
import resource  # Linux and macOS
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY))

from eurosat_utils import (  # noqa: E402
    BATCH_SIZE,
    TILE_SIZE,
    classify_image,
    open_model,
    read_image,
    tile_starts,
)

SCENE_SIDE = 10_980  # pixels
COLOURS = np.interp(np.arange(2**16), (0, 2750), (1, 255)).round().astype(np.uint8)
PLACE = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 600_000, 0, -10, 5_300_040)}  # m


def write_gdal(path, values, **options):
    """Write values `(height, width, 3)` with GDAL; return the path."""
    height, width, count = values.shape
    kind = {"height": height, "width": width, "count": count, "dtype": values.dtype}
    with rasterio.open(path, "w", **kind, **PLACE, **options) as file:
        file.write(np.moveaxis(values, -1, 0))
    return path


def write_formats(folder, side):
    """Write the same noise in each format; return the paths."""
    values = np.random.default_rng(0).integers(1, 2751, (side, side, 3), np.uint16)
    colours = Image.fromarray(COLOURS[values])
    block = {"blockxsize": min(1024, side), "blockysize": min(1024, side)}
    paths = [
        write_gdal(folder / "scene.jp2", values, driver="JP2OpenJPEG", **block),
        write_gdal(folder / "tiled.tif", values, driver="GTiff", compress="deflate", tiled=True),
        write_gdal(folder / "strips.tif", values, driver="GTiff", compress="deflate"),
        folder / "image.png",
        folder / "image.jpg",
    ]
    for path in paths[3:]:
        colours.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))
    return paths


def read_whole(path):
    """Read all of a file in one go, with its own decoder, as colours."""
    if path.suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            return np.asarray(image)
    with rasterio.open(path) as source:
        return np.moveaxis(COLOURS[source.read()], 0, -1).copy()


def seconds(function, *arguments):
    """Return how long a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--side", type=int, default=2048, help="pixels of the images")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    model = open_model(options.model)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_formats(Path(folder), options.side)
        for path in paths:
            ratios = []
            for _ in range(1 + options.turns):  # the first warms up
                whole = seconds(read_whole, path)
                ratios.append(seconds(read_image, path) / whole)
            print(f"{path.name:10} reading: {np.median(ratios[1:]):.2f} of the time of one go")
        for stride in (64, 32):
            side = min(options.side, 640)
            image = read_image(paths[0]).pixels[:side, :side]
            starts = tile_starts(side, stride)
            tiles = [image[y : y + TILE_SIZE, x : x + TILE_SIZE] for y in starts for x in starts]
            tiles, ratios = np.stack(tiles), []
            for _ in range(1 + options.turns):
                alone = seconds(lambda: model.predict(tiles, batch_size=BATCH_SIZE, verbose=0))  # noqa: B023
                ratios.append(alone / seconds(classify_image, model, image, stride))
            speed = f"{len(tiles) / alone:.0f} tiles/s in memory"
            print(f"stride {stride}: {speed}, as a map {np.median(ratios[1:]):.2f} of that")
        if options.side >= 1024:
            height = SCENE_SIDE // 10
            values = np.random.default_rng(0).integers(1, 2751, (height, SCENE_SIDE, 3), np.uint16)
            path = write_gdal(Path(folder, "tenth.tif"), values, driver="GTiff", compress="deflate")
            tenth = seconds(classify_image, model, path)
            print(f"a tenth of a scene: {tenth:.0f} s, all of it about {tenth / 6:.0f} minutes")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory: {peak * (1 if sys.platform == 'darwin' else 1024) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
