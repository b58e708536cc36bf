"""Both notebooks, end to end on drawn tiles: what they leave behind, interrupted and repeated."""

import json
import re

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import (
    DIFFICULT_NAMES,
    SIZES,
    TILES_PER_CLASS,
    kill_notebook,
    make_own_images,
    repeat_cells,
    run_notebook,
)
from PIL import Image
from sklearn.metrics import brier_score_loss

import eurosat_utils as eu
from eurosat_utils import CLASSES, load_tiles, split_digest, wilson_interval


def outputs(notebook):
    """Everything that a notebook's cells printed or showed as text."""
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts += [output.get("text", ""), data.get("text/markdown", "")]
            texts += [data.get("text/plain", "")]
    return "\n".join(texts)


@pytest.fixture(scope="session")
def training(settings):
    """Training.ipynb, killed while it saves an epoch, and run again."""
    folder = settings["folder"]
    backup = folder / "models" / "model.backup"

    def second_epoch_is_being_saved():
        return any(backup.glob(".*.epoch-2.weights.h5"))

    kill_notebook("Training.ipynb", folder, second_epoch_is_being_saved, **settings["training"])
    assert (backup / "epoch-1.weights.h5").exists()
    assert not (backup / "epoch-2.weights.h5").exists()
    return run_notebook("Training.ipynb", folder, **settings["training"])


@pytest.fixture(scope="session")
def results(settings, training):
    return settings["folder"] / "results"


@pytest.fixture(scope="session")
def record(results):
    return json.loads((results / "run.json").read_text())


@pytest.fixture(scope="session")
def predictions(results):
    return pd.read_csv(results / "test_predictions.csv")


def assert_quiet(notebook, figures):
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output["text"] for output in shown if output.get("name") == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in shown) >= figures


def test_training_is_quiet_and_its_figures_are_whole(training, results):
    assert_quiet(training, figures=11)
    for path in results.glob("*.png"):
        with Image.open(path) as image:
            image.verify()


def test_run_killed_while_saving_goes_on_after_the_last_whole_epoch(training, settings, record):
    text = outputs(training)
    assert "An interrupted run was found: it goes on after 1 epochs." in text
    assert re.findall(r"epoch (\d) of 2: ", text) == ["2"]
    assert record["resumed"] is True
    assert [path.name for path in (settings["folder"] / "models").iterdir()] == ["model.keras"]


def test_every_figure_and_table_is_written_and_nothing_half(training, results):
    files = {path.name for path in results.iterdir()}
    assert files == {
        "split.csv", "history.csv", "class_scores.csv", "test_predictions.csv",
        "validation_predictions.csv", "sure_enough.csv", "suspect_labels.csv", "metrics.json",
        "run.json", "training_colours.npy", "class_counts.png", "samples.png", "mean_colours.png",
        "augmentation.png", "history.png", "class_scores.png", "confusion_matrix.png",
        "recipes.png", "reliability.png", "confusions.png", "suspect_labels.png", "elsewhere.png",
    }  # fmt: skip


def test_record_says_how_the_run_was_made(record, results, settings):
    split = pd.read_csv(results / "split.csv")
    assert record["parameters"]["IMAGE_SIZES"] == SIZES
    assert record["split_sha256"] == split_digest(split)
    assert record["weights"]["file"] == "random.weights.h5"
    assert len(record["weights"]["sha256"]) == 64
    assert set(record["seconds"]) == set(eu.Run.STEPS)
    assert record["versions"]["keras"] == keras.__version__
    assert record["processor"]
    assert record["metrics"] == json.loads((results / "metrics.json").read_text())


def test_history_has_both_phases(results):
    history = pd.read_csv(results / "history.csv")
    assert list(history["phase"]) == ["head"] * 2 + ["fine-tuning"] * 2
    assert list(history["epoch"]) == [0, 1, 0, 1]
    assert list(history["image_size"]) == [32, 32, *SIZES]
    assert history[["accuracy", "val_accuracy"]].stack().between(0, 1).all()


def test_metrics_follow_from_the_predictions_and_these_from_the_model(
    settings, results, record, predictions
):
    split = pd.read_csv(results / "split.csv")
    assert set(predictions["file"]) == set(split["file"][split["split"] == "test"])
    right = predictions["label"] == predictions["predicted"]
    metrics = record["metrics"]
    assert metrics["accuracy"] == pytest.approx(right.mean())
    interval = wilson_interval(right.sum(), len(right))
    assert metrics["accuracy_95_percent_interval"] == pytest.approx(interval)
    model = keras.saving.load_model(settings["paths"]["MODEL_PATH"])
    tiles = load_tiles(f"{settings['paths']['DATA_DIR']}/EuroSAT_RGB", predictions["file"])
    probabilities = model.predict(tiles, verbose=0)
    np.testing.assert_allclose(predictions[list(CLASSES)], probabilities, atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert model.input.dtype == "uint8"
    assert model.get_layer("resnet50").dtype == "float32"
    for weight in model.get_layer("resnet50").get_weights():
        np.testing.assert_array_equal(eu.round_weights([weight])[0], weight)
    assert not any(isinstance(layer, keras.layers.Lambda) for layer in model.layers)


def test_calibration_follows_from_the_predictions(record, results, predictions):
    probabilities = predictions[list(CLASSES)].to_numpy()
    labels = predictions["label"].map(CLASSES.index).to_numpy()
    before, after = (
        record["metrics"]["calibration"][f"{when} calibration"] for when in ("before", "after")
    )
    brier = brier_score_loss(labels, probabilities / probabilities.sum(axis=1, keepdims=True))
    assert after["brier_score"] == pytest.approx(brier, abs=1e-4)
    error = eu.calibration_bins(probabilities, labels)[0]
    assert after["expected_calibration_error"] == pytest.approx(error, abs=1e-3)
    assert set(before) == set(after)
    validation = pd.read_csv(results / "validation_predictions.csv")
    calibrated = validation[list(CLASSES)].to_numpy()
    truth = validation["label"].map(CLASSES.index).to_numpy()
    assert eu.fit_temperature(calibrated, truth) == pytest.approx(1, abs=0.05)


def test_mean_colours_of_the_training_tiles_are_saved(settings, results):
    colours = np.load(results / "training_colours.npy")
    split = pd.read_csv(results / "split.csv")
    files = split["file"][split["split"] == "train"]
    tiles = load_tiles(f"{settings['paths']['DATA_DIR']}/EuroSAT_RGB", files)
    assert colours.dtype == np.uint8
    np.testing.assert_allclose(colours, tiles.mean(axis=(1, 2)), atol=0.5)


# ---------------------------------------------------------------- Inference.ipynb


@pytest.fixture(scope="session")
def inference(settings, training):
    """Inference.ipynb on the test tiles: each cell twice, then all of them again."""
    notebook = repeat_cells("Inference.ipynb", settings["folder"])
    return run_notebook(notebook, settings["folder"], **settings["paths"])


def test_inference_is_quiet_and_its_figures_are_whole(inference, results):
    assert_quiet(inference, figures=4)
    for name in ("inference", "inference_gradcam", "inference_interval", "mosaic"):
        with Image.open(results / f"{name}.png") as image:
            image.verify()


def test_inference_cells_may_be_run_again(inference, results):
    for name in ("inference.csv", "mosaic.csv", "inference_accuracy.csv"):
        tables = [pd.read_csv(folder / name) for folder in (results.parent / "before", results)]
        pd.testing.assert_frame_equal(*tables)


def test_samples_are_test_tiles_of_all_classes(inference, results):
    samples = pd.read_csv(results / "inference.csv")
    split = pd.read_csv(results / "split.csv").set_index("file")["split"]
    assert len(samples) == 20
    assert set(split[samples["file"]]) == {"test"}
    assert (samples["label"].value_counts() == 2).all()
    assert (samples["correct"] == (samples["label"] == samples["predicted"])).all()


def test_samples_stand_beside_the_whole_test_part(inference, results, record):
    comparison = pd.read_csv(results / "inference_accuracy.csv")
    assert list(comparison["of"]) == [20, 2 * TILES_PER_CLASS]
    accuracy = record["metrics"]["accuracy"]
    assert comparison["accuracy"].iloc[1] == pytest.approx(accuracy, abs=1e-4)


def test_map_of_the_mosaic_agrees_with_the_tiles_one_by_one(inference, results, predictions):
    mosaic = pd.read_csv(results / "mosaic.csv")
    by_file = predictions.set_index("file").loc[mosaic["file"]]
    assert len(mosaic) == 16  # the largest square with at most 20 tiles
    assert list(mosaic["label"]) == list(by_file["predicted"])
    assert list(mosaic["truth"]) == list(by_file["label"])
    np.testing.assert_allclose(mosaic["probability"], by_file[list(CLASSES)].max(axis=1), atol=2e-4)
    assert "16 answers agree" in outputs(inference)


def test_own_images_need_no_data_set_and_bad_ones_are_listed(settings, training, tmp_path, results):
    make_own_images(tmp_path / "my images")
    before = {path: path.stat().st_mtime_ns for path in results.glob("*.*")}
    paths = settings["paths"] | {"DATA_DIR": str(tmp_path / "nothing.zip")}
    images = {"IMAGES": str(tmp_path / "my images"), "STRIDE": 32}
    notebook = run_notebook("Inference.ipynb", tmp_path, **paths | images)
    text = outputs(notebook)
    (folder,) = (results / "own_images").glob("my images-*")
    overview = pd.read_csv(folder / "overview.csv").set_index("image")
    assert overview.loc["scene.png", ["width", "height", "tiles"]].tolist() == [160, 100, 4 * 3]
    assert overview.loc["tile.tif", "tiles"] == 1
    scenes = [tmp_path / "my images" / name for name in (*DIFFICULT_NAMES, "scene.png")]
    names = eu.distinct_names(scenes)
    assert list(overview.index) == [*names, "tile.tif"]
    assert {path.name for path in folder.iterdir()} == {"overview.csv", "tiles.png"} | {
        f"{name}_{what}" for name in names for what in ("map.png", "tiles.csv")
    }
    assert f"{len(overview)} of {len(overview) + 4} images classified; saved in" in text
    for line in (
        r"black.png: no data, \(nearly\) all pixels are black or transparent",
        "small.png: 63x64 pixels, smaller than a tile of 64x64",
        "text.jpg: not a readable JPEG, PNG, TIFF or JPEG 2000 image",
        "truncated.png: damaged or incomplete",
    ):
        assert re.search(line, text)
    assert "notes.txt" not in text
    html = "".join(
        output.get("data", {}).get("text/html", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert ("&lt;b&gt;field.png" in html) == ("<b>field.png" in DIFFICULT_NAMES)
    assert "<b>field" not in html
    assert before == {path: path.stat().st_mtime_ns for path in results.glob("*.*")}
