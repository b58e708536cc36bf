"""See both notebooks at work within minutes, without downloads: on drawn tiles, not on EuroSAT.

python tests/demo.py
"""

import shutil
from pathlib import Path

import nbformat
import papermill
import rasterio
from draw_tiles import draw_scene, draw_tiles

REPOSITORY = Path(__file__).resolve().parent.parent
NOTE = (
    "**The tiles on this page are drawn by a program, `tests/draw_tiles.py`: they are not EuroSAT, "
    "and no number below says how good the network is on real images.** What the page says about "
    "EuroSAT and about our runs is meant for the real tiles."
)
SETTINGS = {
    "DATA_DIR": "demo/data",
    "MODEL_PATH": "demo/model.keras",
    "RESULTS_DIR": "demo/results",
}
RUNS = {
    "Training.ipynb": {
        "WEIGHTS": "models/eurosat_resnet50.keras", "IMAGE_SIZE": 64, "EPOCHS": 2, "BATCH_SIZE": 16
    },
    "Inference.ipynb": {"IMAGES": "demo/landscape.tif", "STRIDE": 32},
}  # fmt: skip


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
    folder = REPOSITORY / "demo"
    print("Drawing tiles and a landscape", flush=True)
    prepare(folder)
    for name, settings in RUNS.items():
        print(f"Running {name}", flush=True)
        options = {"cwd": REPOSITORY, "kernel_name": "python3"}
        papermill.execute_notebook(page(name), folder / name, SETTINGS | settings, **options)
    print(
        "\nDone. The pages: jupyter notebook demo/Training.ipynb (and demo/Inference.ipynb).\n"
        "Figures and tables: demo/results; the map of the landscape: demo/results/own_images/demo"
    )


if __name__ == "__main__":
    main()
