"""Both notebooks, run end to end on synthetic tiles: what they leave behind and how they fail."""

import json
import re
import shutil
import subprocess
import sys
import zipfile

import keras
import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import (
    REPOSITORY,
    TILES_PER_CLASS,
    kill_notebook,
    make_tiles,
    notebook_functions,
    ordinary_user,
    run_notebook,
)
from papermill.exceptions import PapermillExecutionError
from PIL import Image
from scipy.spatial.distance import cdist

from eurosat_utils import CLASSES, load_tiles, split_digest, wilson_interval


def outputs(notebook):
    """Everything that a notebook's cells printed or showed as text."""
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts.append(output.get("text", "") + data.get("text/markdown", "") + data.get("text/plain", ""))
    return "\n".join(texts)


def test_notebooks_are_quiet_and_show_figures(run):
    for name, figures in (("training", 8), ("inference", 3)):
        shown = [output for cell in run[name].cells for output in cell.get("outputs", [])]
        assert [output["text"] for output in shown if output.get("name") == "stderr"] == []
        assert sum("image/png" in output.get("data", {}) for output in shown) >= figures


def test_every_file_of_the_readme_is_written(run):
    files = {path.name for path in run["results"].iterdir()}
    assert files >= {
        "split.csv", "history.csv", "class_scores.csv", "test_predictions.csv", "sure_enough.csv", "suspect_labels.csv",
        "metrics.json", "run.json", "class_counts.png", "samples.png", "mean_colours.png", "augmentation.png",
        "history.png", "class_scores.png", "confusion_matrix.png", "reliability.png",
        "inference.csv", "inference.png", "inference_gradcam.png", "inference_accuracy.csv", "inference_interval.png",
        "mosaic.csv", "mosaic.png", "own_images",
    }  # fmt: skip
    assert not any(name.startswith(".") for name in files)
    for path in run["results"].glob("*.png"):
        with Image.open(path) as image:
            image.verify()


def test_record_of_the_run(run):
    record = json.loads((run["results"] / "run.json").read_text())
    split = pd.read_csv(run["results"] / "split.csv")
    assert record["split_sha256"] == split_digest(split)
    assert record["parameters"]["IMAGE_SIZES"] == [32, 32, 40]
    assert record["weights"]["file"] == "random.weights.h5"
    assert len(record["weights"]["sha256"]) == 64
    assert set(record["seconds"]) == {"load", "fine-tuning", "calibration", "test"}  # the killed run did the rest
    assert record["versions"]["keras"] == keras.__version__
    assert record["machine"]["processor"]
    assert 0.1 < record["machine"]["peak_memory_gb"] < record["machine"]["memory_gb"]
    assert record["resumed"] is True
    assert record["metrics"] == json.loads((run["results"] / "metrics.json").read_text())


def test_history_has_both_phases(run):
    history = pd.read_csv(run["results"] / "history.csv")
    assert list(history["phase"]) == ["head"] * 2 + ["fine-tuning"] * 3
    assert list(history["epoch"]) == [0, 1, 0, 1, 2]
    assert list(history["image_size"]) == [32, 32, 32, 32, 40]
    assert history[["accuracy", "val_accuracy"]].stack().between(0, 1).all()
    assert "accuracy" in outputs(run["training"])


def test_metrics_follow_from_the_predictions_and_the_predictions_from_the_model(run):
    predictions = pd.read_csv(run["results"] / "test_predictions.csv")
    split = pd.read_csv(run["results"] / "split.csv")
    assert set(predictions["file"]) == set(split["file"][split["split"] == "test"])
    assert len(predictions) == 2 * TILES_PER_CLASS
    metrics = json.loads((run["results"] / "metrics.json").read_text())
    right = predictions["label"] == predictions["predicted"]
    assert metrics["accuracy"] == pytest.approx(right.mean())
    assert metrics["accuracy_95_percent_interval"] == pytest.approx(wilson_interval(right.sum(), len(right)))
    model = keras.saving.load_model(run["paths"]["MODEL_PATH"])
    tiles = load_tiles(f"{run['paths']['DATA_DIR']}/EuroSAT_RGB", predictions["file"])
    probabilities = model.predict(tiles, verbose=0)
    np.testing.assert_allclose(predictions[list(CLASSES)], probabilities, atol=1e-4)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert not any(isinstance(layer, keras.layers.Lambda) for layer in model.layers)
    assert model.input.dtype == "uint8"


def test_model_prepares_pixels_as_imagenet_images_were(run):
    model = keras.saving.load_model(run["paths"]["MODEL_PATH"])
    tiles = np.empty((1, 64, 64, 3), np.uint8)
    tiles[...] = [200, 100, 50]  # red, green, blue
    prepared = keras.Model(model.input, model.get_layer("conv1_pad").input).predict(tiles, verbose=0)
    assert prepared.shape == (1, 40, 40, 3)  # the last of IMAGE_SIZES
    np.testing.assert_allclose(prepared[0, 5, 5], [50 - 103.939, 100 - 116.779, 200 - 123.68], atol=1e-3)


def test_calibration_table_follows_from_the_predictions(run):
    predictions = pd.read_csv(run["results"] / "test_predictions.csv")
    probabilities, labels = predictions[list(CLASSES)].to_numpy(), predictions["label"].map(CLASSES.index).to_numpy()
    scores = json.loads((run["results"] / "metrics.json").read_text())["calibration"]["after calibration"]
    truth = np.eye(10)[labels]
    assert scores["brier_score"] == pytest.approx(((probabilities - truth) ** 2).sum(axis=1).mean(), abs=1e-4)
    error, _ = notebook_functions("Training.ipynb")["calibration_bins"](probabilities, labels)
    assert scores["expected_calibration_error"] == pytest.approx(error, abs=1e-4)


def test_temperature_is_in_the_saved_model(run):
    metrics = json.loads((run["results"] / "metrics.json").read_text())
    before, after = (metrics["calibration"][f"{when} calibration"] for when in ("before", "after"))
    assert metrics["temperature"] > 0
    assert set(before) == set(after) == {"log_loss", "brier_score", "expected_calibration_error"}
    predictions = pd.read_csv(run["results"] / "test_predictions.csv")
    chosen = predictions[list(CLASSES)].to_numpy()[np.arange(len(predictions)), predictions["label"].map(CLASSES.index)]
    assert after["log_loss"] == pytest.approx(-np.log(chosen.clip(1e-6)).mean(), rel=0.02)


def test_inference_uses_test_tiles_only(run):
    samples = pd.read_csv(run["results"] / "inference.csv")
    split = pd.read_csv(run["results"] / "split.csv").set_index("file")["split"]
    assert len(samples) == 20
    assert set(split[samples["file"]]) == {"test"}
    assert (samples["label"].value_counts() == 2).all()
    assert (samples["correct"] == (samples["label"] == samples["predicted"])).all()
    assert samples["best_three"].str.startswith(tuple(CLASSES)).all()


def test_inference_compares_the_samples_with_the_whole_test_part(run):
    comparison = pd.read_csv(run["results"] / "inference_accuracy.csv")
    metrics = json.loads((run["results"] / "metrics.json").read_text())
    assert list(comparison["of"]) == [20, 2 * TILES_PER_CLASS]
    assert comparison["accuracy"].iloc[1] == pytest.approx(metrics["accuracy"], abs=1e-4)


def test_map_of_the_mosaic_agrees_with_the_tiles_one_by_one(run):
    mosaic = pd.read_csv(run["results"] / "mosaic.csv")
    predictions = pd.read_csv(run["results"] / "test_predictions.csv").set_index("file").loc[mosaic["file"]]
    assert len(mosaic) == 16  # the largest square with at most 20 tiles
    assert list(mosaic["label"]) == list(predictions["predicted"])
    assert list(mosaic["truth"]) == list(predictions["label"])
    np.testing.assert_allclose(mosaic["probability"], predictions[list(CLASSES)].max(axis=1), atol=2e-4)
    assert "16 answers agree" in outputs(run["inference"])


def test_own_images_become_maps_and_the_others_are_listed(run):
    folder = run["results"] / "own_images" / "my images"
    overview = pd.read_csv(folder / "overview.csv").set_index("image")
    assert list(overview.index) == ["scene.png", "tile.tif"]
    assert overview.loc["scene.png", ["width", "height", "tiles"]].tolist() == [160, 100, 4 * 3]
    assert overview.loc["tile.tif", "tiles"] == 1
    assert {path.name for path in folder.iterdir()} == {
        "overview.csv", "tiles.png", "scene.png_map.png", "scene.png_tiles.csv",
    }  # fmt: skip
    text = outputs(run["inference"])
    assert "4 of 6 images could not be used." in text
    for line in (
        r"black.png: no data, \(nearly\) all pixels are black or transparent",
        "small.png: 63x64 pixels, smaller than a tile of 64x64",
        "text.jpg: not a readable JPEG, PNG or TIFF image",
        "truncated.png: damaged or incomplete",
    ):
        assert re.search(line, text)
    assert "notes.txt" not in text


def test_unusual_colours_are_noticed(run):
    split = pd.read_csv(run["results"] / "split.csv")
    files = split["file"][split["split"] == "train"]
    colours = load_tiles(f"{run['paths']['DATA_DIR']}/EuroSAT_RGB", files).mean(axis=(1, 2))
    limit = np.quantile(np.sort(cdist(colours, colours), axis=1)[:, 1], 0.999)
    folder = run["results"] / "own_images" / "my images"
    overview = pd.read_csv(folder / "overview.csv").set_index("image")["unusual tiles"]
    table = pd.read_csv(folder / "scene.png_tiles.csv")
    distances = cdist(table[["red", "green", "blue"]], colours).min(axis=1)
    assert overview["scene.png"] == pytest.approx((distances > limit).mean(), abs=1e-4)
    text = outputs(run["inference"])
    assert overview.max() > 0.01  # the images are noise, unlike the training tiles
    for name, share in overview.items():
        assert (f"of the tiles of {name} have unusual colours" in text) == (share > 0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"IMAGES": "nowhere"}, "IMAGES: .*nowhere does not exist"),
        ({"STRIDE": 65}, "STRIDE must be a whole number of pixels from 1 to 64, not 65"),
        ({"LEVELS": [2750, 0]}, r"LEVELS must be two values .* not \[2750, 0\]"),
        ({"LEVELS": 2750}, "LEVELS must be two values .* not 2750"),
        ({"SEED": "0"}, "SEED must be a whole number from 0 to .* not '0'"),
    ],
)
def test_impossible_settings_of_inference_are_named_before_any_work(tmp_path, settings, message):
    with pytest.raises(PapermillExecutionError, match=message):
        run_notebook("Inference.ipynb", tmp_path, MODEL_PATH="nothing.keras", **settings)


def test_inference_runs_from_another_folder(run, tmp_path):
    settings = [item for name, value in run["paths"].items() for item in ("-p", name, value)]
    command = [sys.executable, "-m", "papermill", str(REPOSITORY / "Inference.ipynb"), "out.ipynb"]
    subprocess.run([*command, "--cwd", str(REPOSITORY), *settings], cwd=tmp_path, check=True, capture_output=True)
    assert "16 answers agree" in outputs(nbformat.read(tmp_path / "out.ipynb", as_version=4))


def test_inference_without_a_model_says_to_train_first(run, tmp_path):
    with pytest.raises(PapermillExecutionError, match=r"no model at .*nothing\.keras\. Run Training\.ipynb first"):
        run_notebook("Inference.ipynb", tmp_path, **run["paths"] | {"MODEL_PATH": str(tmp_path / "nothing.keras")})


def save_model(path, units=10, answer=None):
    """Save a tiny model that takes tiles and gives `units` probabilities, through the layer `answer` if given."""
    tile = keras.Input((64, 64, 3), dtype="uint8")
    mean = keras.layers.GlobalAveragePooling2D()(keras.ops.cast(tile, "float32"))
    output = keras.layers.Dense(units, activation="softmax")(mean)
    keras.Model(tile, answer(output) if answer else output).save(path)


def save_truncated(path):
    save_model(path)
    path.write_bytes(path.read_bytes()[:5000])


def save_from_another_version(path):
    save_model(path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content["config.json"] = content["config.json"].replace(b'"GlobalAveragePooling2D"', b'"PoolingOfTheFuture"')
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def save_code(path):
    """An archive that brings code of its own, to be run when the model is used."""
    save_model(path, answer=keras.layers.Lambda(lambda x: x, output_shape=(10,)))


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (save_truncated, "cannot be loaded by Keras .* It is damaged, from another version"),
        (lambda path: path.write_text("not a model"), "cannot be loaded by Keras .* It is damaged"),
        (save_from_another_version, "(?s)cannot be loaded by Keras .*PoolingOfTheFuture.*from another version"),
        (save_code, "(?s)cannot be loaded by Keras .*unsafe.* not a model of Training"),
        (lambda path: save_model(path, units=9), r"answers \(9,\) instead of .*\(10,\): it is not a model of Training"),
    ],
)
def test_inference_refuses_what_is_not_its_model(tmp_path, save, message):
    save(tmp_path / "model.keras")
    with pytest.raises(PapermillExecutionError, match=message):
        run_notebook("Inference.ipynb", tmp_path, MODEL_PATH=str(tmp_path / "model.keras"))


def test_inference_refuses_other_data(run, tmp_path):
    make_tiles(tmp_path / "data", per_class=TILES_PER_CLASS + 1)
    with pytest.raises(PapermillExecutionError, match="10 tiles are not in the split"):
        run_notebook("Inference.ipynb", tmp_path, **run["paths"] | {"DATA_DIR": str(tmp_path / "data")})


SEVERAL_BAD_SETTINGS = {
    "WEIGHTS": "nowhere.h5", "FINE_TUNED_STAGES": "conv5", "IMAGES_PER_CLASS": 0, "MODEL_PATH": "model.h5",
    "IMAGE_SIZES": [96, 31], "BATCH_SIZE": 64.0, "HEAD_EPOCHS": 0, "LEARNING_RATE": 1, "WEIGHT_DECAY": "a",
    "HEAD_LEARNING_RATE": 0, "DTYPE": "float16", "SEED": -1, "DATA_DIR": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    "bad", [SEVERAL_BAD_SETTINGS, {"IMAGE_SIZES": [], "SEED": True, "LEARNING_RATE": "1e-3", "BATCH_SIZE": [64]}]
)
def test_impossible_settings_are_named_before_any_work(tmp_path, bad):
    with pytest.raises(PapermillExecutionError) as error:
        run_notebook("Training.ipynb", tmp_path, **{"RESULTS_DIR": str(tmp_path / "results")} | bad)
    for name in bad:
        assert name in error.value.evalue
    assert not (tmp_path / "results").exists()


def test_run_killed_while_saving_was_resumed_after_the_last_complete_epoch(run):
    text = outputs(run["training"])
    assert "Found an interrupted run: it will be resumed." in text
    assert "1 of 3 epochs are finished already" in text
    assert re.findall(r"fine-tuning: epoch (\d)/3 done", text) == ["2", "3"]
    assert list((run["results"].parent / "models" / "checkpoints").iterdir()) == []


@pytest.fixture
def quick_look(tmp_path, weights):
    """Settings of a quick look, on data of its own."""
    make_tiles(tmp_path / "data")
    return {
        "DATA_DIR": str(tmp_path / "data"),
        "MODEL_PATH": str(tmp_path / "model.keras"),
        "RESULTS_DIR": str(tmp_path / "results"),
        **{"IMAGE_SIZES": [32], "BATCH_SIZE": 16, "HEAD_EPOCHS": 1, "IMAGES_PER_CLASS": 6, "DTYPE": "float32"},
        **{"WEIGHTS": str(weights), "FINE_TUNED_STAGES": ["conv5"]},
    }


def test_run_killed_in_the_head_phase_starts_over(tmp_path, quick_look):
    heads, quick_look = (tmp_path / "checkpoints").glob, quick_look | {"HEAD_EPOCHS": 300}
    kill_notebook("Training.ipynb", tmp_path, lambda: any(heads("*/head.csv")), **quick_look)
    assert not any(heads("*/backup.weights.h5"))
    assert "Found an interrupted run" not in outputs(run_notebook("Training.ipynb", tmp_path, **quick_look))
    record = json.loads((tmp_path / "results" / "run.json").read_text())
    assert record["arithmetic"] == "float32"
    assert record["resumed"] is False
    assert set(record["seconds"]) == {"load", "features", "head", "fine-tuning", "calibration", "test"}
    assert list(pd.read_csv(tmp_path / "results" / "history.csv")["phase"]) == ["head"] * 300 + ["fine-tuning"]
    assert len(pd.read_csv(tmp_path / "results" / "split.csv")) == 60
    assert (tmp_path / "model.keras").is_file()


def test_loss_that_diverges_stops_the_run(tmp_path, quick_look, weights):
    network = keras.applications.ResNet50(include_top=False, weights=weights, input_shape=(32, 32, 3))
    network.get_layer("conv5_block3_3_conv").bias.assign(np.full(2048, np.nan))
    network.save_weights(tmp_path / "nan.weights.h5")
    with pytest.raises(PapermillExecutionError, match="The loss became nan in step .* Lower LEARNING_RATE"):
        run_notebook("Training.ipynb", tmp_path, **quick_look | {"WEIGHTS": str(tmp_path / "nan.weights.h5")})
    assert not (tmp_path / "results" / "split.csv").exists()  # what belongs to another run is not touched
    assert not (tmp_path / "model.keras").exists()


def save_other_network(path, weights):
    keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(32, 32, 3)).save_weights(path)


@pytest.mark.parametrize(
    "save",
    [
        save_other_network,
        lambda path, weights: path.write_bytes(weights.read_bytes()[:10_000_000]),
        lambda path, weights: path.write_text("not HDF5"),
    ],
    ids=["another network", "truncated", "text"],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, quick_look, weights, save):
    other = tmp_path / "other.weights.h5"
    save(other, weights)
    with pytest.raises(
        PapermillExecutionError, match=r"(?s)WEIGHTS: .*other\.weights\.h5 cannot be loaded into a ResNet50"
    ):
        run_notebook("Training.ipynb", tmp_path, **quick_look | {"WEIGHTS": str(other)})
    assert not (tmp_path / "model.keras").exists()


def test_folder_that_cannot_be_written_to_is_named_before_any_work(tmp_path, quick_look):
    (tmp_path / "results").mkdir(mode=0o555)
    command = [*ordinary_user(), sys.executable, "-m", "papermill", str(REPOSITORY / "Training.ipynb"), "-"]
    command += ["--cwd", str(REPOSITORY), "-y", json.dumps(quick_look)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode != 0
    assert re.search(r"ValueError: .*results cannot be written to \(.*Permission.*Choose another", process.stderr)
    assert not (tmp_path / "checkpoints").exists()


def repeat_cells(name, folder):
    """Write a notebook that runs each cell twice, then all cells again, then all once more; return its path."""
    notebook = nbformat.read(REPOSITORY / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    position = next(index for index, cell in enumerate(code) if "parameters" in cell.metadata.get("tags", []))
    again = code[:position] + code[position + 1 :]
    twice = [[cell] if cell is code[position] else [cell, cell] for cell in code]
    keep = nbformat.v4.new_code_cell("import shutil\nshutil.copytree(results, results.parent / 'before')")
    cells = [cell for pair in twice for cell in pair] + again + [keep] + again
    notebook.cells = [nbformat.v4.new_code_cell(cell.source, metadata=cell.metadata) for cell in cells]
    nbformat.write(notebook, folder / name)
    return folder / name


def test_training_cells_may_be_run_again_and_all_of_them_repeat_the_result(tmp_path, quick_look):
    run_notebook(repeat_cells("Training.ipynb", tmp_path), tmp_path, **quick_look)
    folders = tmp_path / "before", tmp_path / "results"
    assert all(list(pd.read_csv(folder / "history.csv")["phase"]) == ["head", "fine-tuning"] for folder in folders)
    first, second = (pd.read_csv(folder / "test_predictions.csv") for folder in folders)
    assert list(first["file"]) == list(second["file"])
    np.testing.assert_allclose(first[list(CLASSES)], second[list(CLASSES)], atol=1e-3)


def test_inference_cells_may_be_run_again(run, tmp_path):
    shutil.copytree(run["results"], tmp_path / "results")
    settings = run["paths"] | {"RESULTS_DIR": str(tmp_path / "results")}
    run_notebook(repeat_cells("Inference.ipynb", tmp_path), tmp_path, **settings)
    for name in ("inference.csv", "mosaic.csv", "inference_accuracy.csv"):
        pd.testing.assert_frame_equal(*(pd.read_csv(tmp_path / part / name) for part in ("before", "results")))


def test_interrupted_run_with_other_settings_is_not_resumed_and_named(tmp_path, quick_look):
    checkpoints = tmp_path / "checkpoints" / "0123456789ab"
    checkpoints.mkdir(parents=True)
    (checkpoints / "backup.weights.h5").touch()
    (checkpoints / "settings.json").write_text(json.dumps(quick_look | {"SEED": 0, "LEARNING_RATE": 1e-3}))
    text = outputs(run_notebook("Training.ipynb", tmp_path, **quick_look))
    (line,) = [line for line in text.splitlines() if line.startswith("Not resumed, because of other ")]
    assert "LEARNING_RATE" in line
    assert "SEED" not in line
    assert checkpoints.is_dir()


def test_copies_in_different_parts_are_reported_and_one_batch_is_enough(tmp_path, quick_look):
    forest = tmp_path / "data" / "Forest"
    for index in range(2, 11):
        (forest / f"Forest_{index}.jpg").write_bytes((forest / "Forest_1.jpg").read_bytes())
    larger_than_the_data = {"BATCH_SIZE": 1000}
    text = outputs(run_notebook("Training.ipynb", tmp_path, **quick_look | larger_than_the_data))
    assert "Careful: 6 tiles are copies of each other in different parts" in text


def test_folding_batch_normalisation_changes_no_answer():
    layers = keras.layers
    image = keras.Input((16, 16, 3))
    x = layers.BatchNormalization(name="a_bn")(layers.Conv2D(5, 3, 2, name="a_conv")(image))
    y = layers.BatchNormalization(name="b_bn", epsilon=0.1)(layers.Conv2D(5, 1, name="b_conv")(layers.ReLU()(x)))
    network = keras.Model(image, layers.Add()([x, y]))
    random = np.random.default_rng(0)
    network.set_weights([random.uniform(0.1, 2, weight.shape) for weight in network.get_weights()])
    folded = notebook_functions("Training.ipynb")["fold_normalisation"](network)
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in folded.layers)
    images = random.normal(size=(4, 16, 16, 3))
    np.testing.assert_allclose(folded.predict(images, verbose=0), network.predict(images, verbose=0), rtol=1e-4)


def test_model_is_compressed_rounded_and_free_of_what_older_keras_refuses(run):
    with zipfile.ZipFile(run["paths"]["MODEL_PATH"]) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}
        config = archive.read("config.json").decode()
    assert '"kernel_initializer"' in config
    assert not re.search("input_axes|output_axes|quantization_config", config)
    kernel = keras.saving.load_model(run["paths"]["MODEL_PATH"]).get_layer("conv5_block3_3_conv").kernel
    np.testing.assert_array_equal(kernel, keras.ops.cast(keras.ops.cast(kernel, "bfloat16"), "float32"))
