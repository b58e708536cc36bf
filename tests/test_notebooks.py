"""Both notebooks, end to end on drawn tiles: training that was killed goes on, then inference."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import papermill
import psutil
import pytest
from conftest import REPOSITORY
from draw_tiles import draw_scene, draw_tiles
from PIL import Image
from sklearn.metrics import log_loss

import eurosat_utils as eu

CLASSES = list(eu.CLASSES)


def execute(name, folder, settings):
    return papermill.execute_notebook(REPOSITORY / name, folder / name, settings, cwd=REPOSITORY)


def kill_training(folder, settings, until):
    """Start Training.ipynb and kill it, kernel included, as soon as a path exists."""
    command = [sys.executable, "-m", "papermill", "Training.ipynb", str(folder / "killed.ipynb")]
    command += ["--no-progress-bar", "-y", json.dumps(settings)]
    process = psutil.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while process.poll() is None and not until.exists():
        time.sleep(0.05)
    assert until.exists()
    family = [process, *process.children(recursive=True)]
    for member in family:
        member.kill()
    psutil.wait_procs(family)


@pytest.fixture(scope="module")
def run(tmp_path_factory, weights):
    """What is left of a training, killed after its head and run again, and of inference."""
    folder = tmp_path_factory.mktemp("run")
    places = {"DATA_DIR": "data", "MODEL_PATH": "model.keras", "RESULTS_DIR": "results"}
    paths = {name: str(folder / place) for name, place in places.items()}
    draw_tiles(folder / "data" / "EuroSAT_RGB")
    settings = paths | {"WEIGHTS": str(weights), "IMAGE_SIZE": 32, "EPOCHS": 1, "BATCH_SIZE": 16}
    settings["LEARNING_RATE"] = 0  # weights that stay as they are are compressed fast
    kill_training(folder, settings, until=folder / "model.backup" / "epoch-0")
    training = execute("Training.ipynb", folder, settings)
    results = folder / "results"
    written = {path: path.read_bytes() for path in results.iterdir()}
    (images := folder / "my images").mkdir()
    Image.fromarray(draw_scene(160)).crop((0, 0, 160, 100)).save(images / "scene.png")
    (images / "broken.jpg").write_text("not an image")
    inference = execute("Inference.ipynb", folder, paths | {"IMAGES": str(images)})
    predictions = pd.read_csv(results / "test_predictions.csv")
    return SimpleNamespace(**locals())


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def text_of(notebook):
    shown = [output.get("data", output) for output in outputs_of(notebook)]
    kinds = "text", "text/plain", "text/markdown"
    return "\n".join(content[kind] for content in shown for kind in kinds if kind in content)


@pytest.mark.parametrize(("name", "figures"), [("training", 8), ("inference", 5)])
def test_notebook_ends_quietly_with_its_figures(run, name, figures):
    outputs = outputs_of(getattr(run, name))
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    assert [output for output in outputs if output.output_type == "error"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == figures


def test_training_that_was_killed_goes_on_after_its_head(run):
    text = text_of(run.training)
    assert "An interrupted run was found: it goes on after 0 epochs." in text
    assert "epoch: 60 tiles in" in text
    assert "features: " not in text
    history = pd.read_csv(run.results / "history.csv")
    assert list(history["phase"]) == ["head"] * 20 + ["fine-tuning"]
    assert list(history["epoch"]) == [*range(20), 0]
    assert not (run.folder / "model.backup").exists()


def test_training_writes_every_figure_and_table(run):
    assert {path.name for path in run.written} == {
        "split.csv", "history.csv", "class_scores.csv", "test_predictions.csv",
        "validation_predictions.csv", "sure_enough.csv", "suspect_labels.csv", "metrics.json",
        "run.json", "training_colours.npy", "class_counts.png", "samples.png", "augmentation.png",
        "history.png", "confusion_matrix.png", "reliability.png", "confusions.png",
        "suspect_labels.png",
    }  # fmt: skip


def test_what_was_tested_is_the_file_and_the_metrics_follow(run):
    split, record = eu.read_run(run.results, run.paths["MODEL_PATH"])
    assert set(run.predictions["file"]) == set(split["file"][split["split"] == "test"])
    tiles = eu.load_tiles(run.folder / "data" / "EuroSAT_RGB", run.predictions["file"])
    probabilities = eu.open_model(run.paths["MODEL_PATH"]).predict(tiles, verbose=0)
    np.testing.assert_allclose(run.predictions[CLASSES], probabilities, rtol=0, atol=1e-5)
    metrics = json.loads((run.results / "metrics.json").read_text("utf-8"))
    assert record["metrics"] == metrics
    right = run.predictions["label"] == run.predictions["predicted"]
    assert metrics["accuracy"] == pytest.approx(right.mean())
    loss = log_loss(run.predictions["label"], probabilities, labels=CLASSES)
    assert metrics["calibration"]["after calibration"]["log_loss"] == pytest.approx(loss, rel=1e-3)
    validation = pd.read_csv(run.results / "validation_predictions.csv")
    labels = validation["label"].map(CLASSES.index).to_numpy()
    temperature = eu.fit_temperature(validation[CLASSES].to_numpy(), labels)
    assert temperature == pytest.approx(1, abs=0.02)
    files = split["file"][split["split"] == "train"]
    means = eu.load_tiles(run.folder / "data" / "EuroSAT_RGB", files).mean(axis=(1, 2))
    np.testing.assert_allclose(np.load(run.results / "training_colours.npy"), means, atol=0.51)


def test_samples_and_mosaic_are_test_tiles_of_all_classes(run):
    samples = pd.read_csv(run.results / "inference.csv")
    assert set(samples["file"]) == set(run.predictions["file"])
    assert (samples["label"].value_counts() == 2).all()
    assert (samples["correct"] == (samples["label"] == samples["predicted"])).all()
    mosaic = pd.read_csv(run.results / "mosaic.csv")
    in_test = run.predictions.set_index("file").loc[mosaic["file"]]
    assert list(mosaic["truth"]) == list(in_test["label"])
    assert list(mosaic["label"]) == list(in_test["predicted"])
    highest = in_test[CLASSES].max(axis=1)
    np.testing.assert_allclose(mosaic["probability"], highest, rtol=0, atol=1e-4)
    assert "16 answers agree with those of the test" in text_of(run.inference)


def test_own_images_are_mapped_beside_the_results_of_the_training(run):
    folder = run.results / "own_images" / "my images"
    overview = pd.read_csv(folder / "overview.csv").set_index("image")
    assert overview["tiles"].dropna().to_dict() == {"scene.png": 6}
    assert list(overview.index[overview["problem"].notna()]) == ["broken.jpg"]
    names = {"overview.csv", "scene_map.png", "scene_tiles.csv"}
    assert {path.name for path in folder.iterdir()} == names
    assert {path: path.read_bytes() for path in run.written} == run.written
