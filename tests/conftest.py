"""What several tests need: drawn tiles, random weights, cells of the notebooks."""

import sys
from pathlib import Path

import matplotlib as mpl
import nbformat
import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))
mpl.use("agg")


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file with random weights of ResNet50; they repeat, so they are compressed fast."""
    import keras

    path = tmp_path_factory.mktemp("weights") / "random.weights.h5"
    keras.utils.set_random_seed(0)
    network = keras.applications.ResNet50(include_top=False, weights=None)
    network.set_weights([np.resize(w.flat[:4093], w.shape) for w in network.get_weights()])
    network.save_weights(path)
    return path


def code_cells():
    """Return the source of each code cell of Training.ipynb."""
    cells = nbformat.read(REPOSITORY / "Training.ipynb", as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def cell_with(text):
    """Return the source of the one such cell that contains a text."""
    (source,) = [source for source in code_cells() if text in source]
    return source
