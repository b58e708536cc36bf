"""What several tests need: drawn tiles, own images, random weights, notebooks that are run."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import matplotlib as mpl
import nbformat
import numpy as np
import papermill
import psutil
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
mpl.use("agg")

from draw_tiles import draw_tiles  # noqa: E402

TILES_PER_CLASS = 10
SIZES = [32, 40]
# HTML; nearly as long as a name may be; neither can be on Windows
DIFFICULT_NAMES = () if os.name == "nt" else ("<b>field.png", f"{'long' * 58}.png")


@pytest.fixture
def data(tmp_path):
    """A folder with a small data set in `EuroSAT_RGB/`."""
    draw_tiles(tmp_path / "data" / "EuroSAT_RGB")
    return tmp_path / "data"


def make_own_images(folder):
    """Write images as users have them: three scenes, a tile, and four that cannot be used."""
    folder.mkdir()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (100, 160, 3), np.uint8)).save(folder / "scene.png")
    Image.fromarray(random.integers(0, 256, (64, 64, 4), np.uint8)).save(folder / "tile.tif")
    for name in DIFFICULT_NAMES:
        (folder / name).write_bytes((folder / "scene.png").read_bytes())
    Image.new("RGB", (63, 64)).save(folder / "small.png")
    Image.new("RGB", (128, 128)).save(folder / "black.png")
    whole = (folder / "scene.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not an image")
    (folder / "notes.txt").write_text("not meant to be one")


def ordinary_user():
    """Return how a command begins that may not read and write everything, as root may."""
    if os.name == "nt":
        pytest.skip("Windows has other permissions")
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root may read and write everything")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def run_notebook(name, folder, **parameters):
    """Run a notebook of the repository with parameters; return it with its outputs."""
    return papermill.execute_notebook(
        REPOSITORY / name,
        folder / name,
        parameters,
        cwd=REPOSITORY,
        kernel_name="python3",
        progress_bar=False,
    )


def kill_notebook(name, folder, until, **parameters):
    """Start a notebook and kill it, kernel included, as soon as `until()` is true."""
    command = [
        sys.executable,
        "-m",
        "papermill",
        name,
        str(folder / name),
        "-y",
        json.dumps(parameters),
    ]
    process = psutil.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not until():
        time.sleep(0.05)
    if process.is_running():
        family = [process, *process.children(recursive=True)]
        for member in family:
            member.kill()
        psutil.wait_procs(family)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file with random weights of ResNet50."""
    import keras

    path = tmp_path_factory.mktemp("weights") / "random.weights.h5"
    keras.applications.ResNet50(
        include_top=False, weights=None, input_shape=(32, 32, 3)
    ).save_weights(path)
    return path


@pytest.fixture(scope="session")
def settings(tmp_path_factory, weights):
    """Those of both notebooks for the smallest run: 100 drawn tiles, random weights."""
    folder = tmp_path_factory.mktemp("run")
    draw_tiles(folder / "data" / "EuroSAT_RGB", TILES_PER_CLASS)
    paths = {
        "DATA_DIR": str(folder / "data"),
        "MODEL_PATH": str(folder / "models" / "model.keras"),
        "RESULTS_DIR": str(folder / "results"),
    }
    recipe = {"IMAGE_SIZES": SIZES, "BATCH_SIZE": 16, "HEAD_EPOCHS": 2, "WEIGHTS": str(weights)}
    return {"folder": folder, "paths": paths, "training": paths | recipe}


def repeat_cells(name, folder):
    """Write a notebook that runs each cell twice, and then all cells again; return its path."""
    notebook = nbformat.read(REPOSITORY / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    position = next(
        index for index, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", [])
    )
    again = code[:position] + code[position + 1 :]
    twice = [[cell] if cell is code[position] else [cell, cell] for cell in code]
    keep = nbformat.v4.new_code_cell(
        "import shutil\nshutil.copytree(results, results.parent / 'before', dirs_exist_ok=True)"
    )
    cells = [*(cell for pair in twice for cell in pair), keep, *again]
    notebook.cells = [nbformat.v4.new_code_cell(c.source, metadata=c.metadata) for c in cells]
    nbformat.write(notebook, folder / name)
    return folder / name
