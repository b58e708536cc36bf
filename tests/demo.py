"""See both notebooks at work within minutes, without downloads: on drawn tiles, not on EuroSAT.

python tests/demo.py
"""

import shutil
import sys
import time
from pathlib import Path

import nbformat
import papermill
import rasterio
from draw_tiles import draw_scene, draw_tiles

REPOSITORY = Path(__file__).resolve().parent.parent
NOTE = (
    "**The tiles on this page are drawn by a program, `tests/draw_tiles.py`: they are not EuroSAT, "
    "and no number below says how good the network is on real images.** What the page says about "
    "EuroSAT and about the published result is meant for the real tiles."
)
MODEL = "models/eurosat_resnet50.keras"  # the included model, where training starts
SETTINGS = {
    "DATA_DIR": "demo/data",
    "MODEL_PATH": "demo/model.keras",
    "RESULTS_DIR": "demo/results",
}
RUNS = {
    "Training.ipynb": {
        "WEIGHTS": MODEL, "IMAGE_SIZES": [64, 64], "BATCH_SIZE": 16, "HEAD_EPOCHS": 5
    },
    "Inference.ipynb": {"IMAGES": "demo/landscape.tif", "STRIDE": 32},
}  # fmt: skip
PLACES = {
    "Training.ipynb": "training, step by step",
    "Inference.ipynb": "what the trained network answers, and a map of the landscape",
    "results": "figures and tables, those of the landscape in own_images",
    "model.keras": "the trained network",
    "data": "the drawn tiles, in ten folders",
    "landscape.tif": "the drawn landscape that was mapped",
}


def prepare(folder, per_class=40):
    """Draw tiles into `folder`/data and a landscape with coordinates, `folder`/landscape.tif."""
    shutil.rmtree(folder / "data", ignore_errors=True)
    draw_tiles(folder / "data", per_class)
    scene = draw_scene()
    height, width, count = scene.shape
    profile = {"height": height, "width": width, "count": count, "dtype": "uint8"}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 54e5)}
    path, kind = folder / "landscape.tif", {"driver": "GTiff", "photometric": "RGB"}
    with rasterio.open(path, "w", **kind, **profile, **place) as file:
        file.write(scene.transpose(2, 0, 1))


def page(name):
    """Return a notebook of the repository, whose title says that the tiles are drawn."""
    notebook = nbformat.read(REPOSITORY / name, as_version=4)
    title, _, text = notebook.cells[0].source.partition("\n")
    notebook.cells[0].source = f"{title} (here: drawn tiles, not EuroSAT)\n\n{NOTE}\n{text}"
    return notebook


def main():
    folder, start = REPOSITORY / "demo", time.perf_counter()
    if not (REPOSITORY / MODEL).is_file():
        sys.exit(f"{MODEL} is missing: restore it from the repository.")
    print("Drawing tiles and a landscape", flush=True)
    prepare(folder)
    for name, settings in RUNS.items():
        print(f"Running {name}", flush=True)
        options = {"cwd": REPOSITORY, "kernel_name": "python3"}
        try:
            papermill.execute_notebook(page(name), folder / name, SETTINGS | settings, **options)
        except Exception as error:  # of the notebook, of the kernel, of the disk
            reason = str(getattr(error, "evalue", error)).strip() or type(error).__name__
            reason = reason.splitlines()[0][:300]
            sys.exit(f"demo/{name}, where all is written down, stopped before its end: {reason}")
    print(f"\nDone in {time.perf_counter() - start:.0f} s. These tiles are drawn, not EuroSAT.")
    for place, what in PLACES.items():
        print(f"  {Path('demo', place)!s:22}  {what}")
    for path in sorted(folder.glob("results/own_images/*/*land_cover.tif")):
        print(f"The map, for QGIS and the like: {path.relative_to(REPOSITORY)}")
    print("The pages: jupyter notebook demo/Training.ipynb")


if __name__ == "__main__":
    main()
