"""What mapping a large image costs, compared with `model.predict` on the same tiles in memory.

    python tests/benchmarks/land_cover_map.py models/eurosat_resnet50.keras

Prints the ratio of the two speeds, alternating, and the peak memory and time of a tenth of a Sentinel-2 scene.
"""

import resource  # Linux and macOS
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY))

import keras  # noqa: E402

from eurosat_utils import BATCH_SIZE, TILE_SIZE, classify_image  # noqa: E402

ALTERNATIONS = 5
SCENE_SIDE = 10_980  # pixels


def write_scene(path, width, height):
    """Write noise as 16-bit TIFF, in the blocks and with the compression that GDAL's users prefer; return it."""
    pixels = np.random.default_rng(0).integers(1, 2751, (3, height, width), np.uint16)
    kind = {
        "driver": "GTiff",
        "width": width,
        "height": height,
        "count": 3,
        "dtype": "uint16",
        "tiled": True,
    }
    place = rasterio.transform.from_origin(600_000, 5_300_040, 10, 10)  # m
    with rasterio.open(path, "w", compress="deflate", transform=place, **kind) as file:
        file.write(pixels)
    return np.interp(pixels, (0, 2750), (1, 255)).round().astype(np.uint8).transpose(1, 2, 0)


def seconds(function, *arguments):
    """Return how long a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


model = keras.saving.load_model(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    path, rows, columns = Path(folder, "scene.tif"), 10, 43
    image = write_scene(path, columns * TILE_SIZE, rows * TILE_SIZE)
    tiles = (
        image.reshape(rows, TILE_SIZE, columns, TILE_SIZE, 3)
        .swapaxes(1, 2)
        .reshape(-1, TILE_SIZE, TILE_SIZE, 3)
    )
    ratios = []
    for _ in range(1 + ALTERNATIONS):  # the first warms up
        in_memory = seconds(lambda: model.predict(tiles, batch_size=BATCH_SIZE, verbose=0))
        ratios.append(in_memory / seconds(classify_image, model, path))
        print(f"{len(tiles) / in_memory:.0f} tiles/s in memory, ratio {ratios[-1]:.2f}")
    print(
        f"ratio without the first: median {np.median(ratios[1:]):.2f}, {min(ratios[1:]):.2f} to {max(ratios[1:]):.2f}"
    )

    write_scene(path, SCENE_SIDE, SCENE_SIDE // 10)
    tenth = seconds(classify_image, model, path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    print(f"a tenth of a scene: {tenth:.0f} s, so about {tenth / 6:.0f} minutes for all of it")
    print(f"peak memory of all this: {peak / 1e9:.2f} GB")
