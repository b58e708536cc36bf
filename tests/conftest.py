"""Synthetic EuroSAT: ten visibly different classes, and both notebooks run once on them."""

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
make_tiles = draw_tiles


@pytest.fixture
def data(tmp_path):
    """A folder with a small data set in `EuroSAT_RGB/`."""
    make_tiles(tmp_path / "data" / "EuroSAT_RGB")
    return tmp_path / "data"


def make_own_images(folder):
    """Write images as users have them: a scene, a single tile, and four that cannot be used."""
    folder.mkdir()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (100, 160, 3), np.uint8)).save(folder / "scene.png")
    Image.fromarray(random.integers(0, 256, (64, 64, 4), np.uint8)).save(folder / "tile.tif")
    Image.new("RGB", (63, 64)).save(folder / "small.png")
    Image.new("RGB", (128, 128)).save(folder / "black.png")
    whole = (folder / "scene.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not an image")
    (folder / "notes.txt").write_text("not meant to be one")


def ordinary_user():
    """Return how a command begins that may not read and write everything, as root otherwise does."""
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
def run(tmp_path_factory, weights):
    """Both notebooks on synthetic tiles, from random weights, at the smallest sizes; killed once while saving."""
    folder = tmp_path_factory.mktemp("run")
    make_tiles(folder / "data" / "EuroSAT_RGB")
    paths = {
        "DATA_DIR": str(folder / "data"),
        "MODEL_PATH": str(folder / "models" / "model.keras"),
        "RESULTS_DIR": str(folder / "results"),
    }
    settings = {
        "IMAGE_SIZES": [32, 32, 40],
        "BATCH_SIZE": 16,
        "HEAD_EPOCHS": 2,
        "WEIGHTS": str(weights),
        **paths,
    }
    checkpoints = folder / "models" / "checkpoints"

    def second_epoch_is_being_saved():
        lines = [
            line
            for log in checkpoints.glob("*/fine-tuning.csv")
            for line in log.read_text().splitlines()
        ]
        return len(lines) == 3 and any(checkpoints.glob("*/.*.backup.weights.h5"))

    kill_notebook("Training.ipynb", folder, second_epoch_is_being_saved, **settings)
    assert len(list(checkpoints.glob("*/.*.backup.weights.h5"))) == 1  # half-written
    training = run_notebook("Training.ipynb", folder, **settings)
    make_own_images(folder / "my images")
    inference = run_notebook(
        "Inference.ipynb", folder, IMAGES=str(folder / "my images"), STRIDE=32, **paths
    )
    return {
        "results": folder / "results",
        "training": training,
        "inference": inference,
        "paths": paths,
    }
