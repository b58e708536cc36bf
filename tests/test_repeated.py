"""Training.ipynb, each cell twice and then all of them again in one kernel; a file of its own, so
that it runs beside the other tests of notebooks."""

import numpy as np
import pandas as pd
from conftest import SIZES, repeat_cells, run_notebook

from eurosat_utils import CLASSES


def test_training_cells_may_be_run_again_and_repeat_the_result(tmp_path, settings):
    paths = {
        "MODEL_PATH": str(tmp_path / "model.keras"),
        "RESULTS_DIR": str(tmp_path / "results"),
    }
    notebook = repeat_cells("Training.ipynb", tmp_path)
    run_notebook(notebook, tmp_path, **settings["training"] | paths)
    folders = tmp_path / "before", tmp_path / "results"
    for folder in folders:
        history = pd.read_csv(folder / "history.csv")
        assert list(history["phase"]) == ["head"] * 2 + ["fine-tuning"] * len(SIZES)
    first, second = (pd.read_csv(folder / "test_predictions.csv") for folder in folders)
    assert list(first["file"]) == list(second["file"])
    np.testing.assert_allclose(first[list(CLASSES)], second[list(CLASSES)], atol=1e-3)
