"""What Training.ipynb calls: network, learning rate, settings, backup, saving, calibration."""

import json
import re
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY, ordinary_user
from scipy.special import softmax

import eurosat_utils as eu
from eurosat_utils import SETTINGS, Progress, RiseAndFall, Run

layers = keras.layers


@pytest.fixture(autouse=True, scope="module")
def release_memory():
    yield
    keras.backend.clear_session()


# ---------------------------------------------------------------- network


def test_folding_batch_normalisation_changes_no_answer():
    image = keras.Input((16, 16, 3))
    x = layers.BatchNormalization(name="a_bn")(layers.Conv2D(5, 3, 2, name="a_conv")(image))
    y = layers.Conv2D(5, 1, name="b_conv")(layers.ReLU()(x))
    y = layers.BatchNormalization(name="b_bn", epsilon=0.1)(y)
    network = keras.Model(image, layers.Add()([x, y]))
    random = np.random.default_rng(0)
    network.set_weights([random.uniform(0.1, 2, weight.shape) for weight in network.get_weights()])
    folded = eu.fold_normalisation(network)
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in folded.layers)
    images = random.normal(size=(4, 16, 16, 3))
    answers = folded.predict(images, verbose=0)
    np.testing.assert_allclose(answers, network.predict(images, verbose=0), rtol=1e-4)


def test_backbone_starts_from_a_weights_file_or_from_a_model_of_the_notebook(weights, tmp_path):
    backbone = eu.load_backbone(weights)
    image = keras.Input((32, 32, 3))
    head = layers.Dense(10, activation="softmax", name="classes")
    keras.Model(image, head(backbone(image))).save(tmp_path / "model.keras")
    again = eu.load_backbone(tmp_path / "model.keras")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
    np.testing.assert_array_equal(
        backbone.predict(images, verbose=0), again.predict(images, verbose=0)
    )
    record = eu.weights_file(weights)
    assert record["file"] == weights.name
    assert len(record["sha256"]) == 64


def save_other_network(path, weights):
    network = keras.applications.MobileNetV2(include_top=False, weights=None)
    network.save_weights(path)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("other.weights.h5", save_other_network),
        ("half.weights.h5", lambda path, file: path.write_bytes(file.read_bytes()[:10_000_000])),
        ("text.weights.h5", lambda path, file: path.write_text("not HDF5")),
        ("text.keras", lambda path, file: path.write_text("not a model")),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, tmp_path, name, save):
    save(tmp_path / name, weights)
    message = rf"(?s)WEIGHTS: .*{re.escape(name)} cannot be loaded .* fetch https://"
    with pytest.raises(ValueError, match=message):
        eu.load_backbone(tmp_path / name)


def test_learning_rate_rises_falls_and_never_leaves_its_range():
    rates = np.array([float(RiseAndFall(0.1, 100)(step)) for step in [*range(100), 101, 1000, 1e6]])
    assert rates.min() >= 0
    assert rates.max() == pytest.approx(0.1, rel=0.02)
    assert rates.argmax() == 9
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[10:101]) < 0).all()
    assert (rates[100:] == 0).all()


def test_eight_turns_are_the_eight_symmetries():
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    turned = eu.turn_tiles(np.repeat(tile[None], 8, axis=0), np.arange(8)).numpy()
    assert turned.dtype == np.uint8
    np.testing.assert_array_equal(turned[0], tile)
    expected = {
        np.rot90(view, number).tobytes() for view in (tile, tile[::-1]) for number in range(4)
    }
    assert {view.tobytes() for view in turned} == expected


def test_work_of_the_default_is_counted_as_the_sum_of_its_convolutions():
    assert eu.training_pflop([96], 16_200) == pytest.approx(0.069, abs=0.001)
    assert eu.training_pflop([192], 100) == pytest.approx(4 * eu.training_pflop([96], 100))


@pytest.fixture
def small_model():
    """A compiled model with the names of the real one, that takes tiles."""
    keras.utils.set_random_seed(0)
    tile = keras.Input((64, 64, 3), dtype="uint8")
    x = layers.AveragePooling2D(16)(keras.ops.cast(tile, "float32") / 255)
    model = keras.Model(tile, layers.Dense(10, activation="softmax")(layers.Flatten()(x)))
    optimizer = keras.optimizers.AdamW(0.01)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    return random.integers(0, 256, (20, 64, 64, 3), np.uint8), random.integers(0, 10, 20)


def values_of(model):
    return [value.numpy() for value in [*model.variables, *model.optimizer.variables]]


def test_measuring_the_speed_leaves_model_and_optimizer_as_they_were(small_model, batch):
    before = values_of(small_model)
    assert eu.measure_speed(small_model, *batch) > 0
    for old, new in zip(before, values_of(small_model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_progress_shows_each_epoch_and_what_is_left(small_model, batch, capsys):
    progress = Progress("learning", 20, costs=[1, 4])
    for epoch in range(2):
        small_model.fit(
            *batch, batch_size=5, initial_epoch=epoch, epochs=epoch + 1, verbose=0,
            validation_data=batch, callbacks=[progress],
        )  # fmt: skip
    text = capsys.readouterr().out
    assert re.search(r"epoch 1 of 2: \d+ s, accuracy [\d.]+%, on validation [\d.]+%", text)
    assert "learning: 2 of 2 epochs are done" in text
    assert progress.seconds > 0
    assert eu.predict(small_model, batch[0], "test").shape == (20, 10)
    assert "test: 20 tiles in 0 s" in capsys.readouterr().out


def test_loss_that_is_not_a_number_stops_the_training(small_model, batch):
    small_model.set_weights([np.full_like(value, np.nan) for value in small_model.get_weights()])
    with pytest.raises(RuntimeError, match=r"the loss became nan in step 1\. Lower LEARNING_RATE"):
        small_model.fit(*batch, verbose=0, callbacks=[Progress("learning", 20)])


# ---------------------------------------------------------------- settings and runs


@pytest.fixture
def settings(tmp_path, weights):
    """Settings of Training.ipynb that work."""
    return {
        "DATA_DIR": "data", "SPLIT": "random", "SPLIT_SEED": 0, "IMAGES_PER_CLASS": None,
        "WEIGHTS": str(weights), "IMAGE_SIZES": [64, 96], "FINE_TUNED_STAGES": ["conv5"],
        "BATCH_SIZE": 64, "HEAD_EPOCHS": 20, "HEAD_LEARNING_RATE": 1e-3, "LEARNING_RATE": 2e-4,
        "WEIGHT_DECAY": 0.01, "DTYPE": None, "SEED": 0,
        "MODEL_PATH": str(tmp_path / "models" / "model.keras"),
        "RESULTS_DIR": str(tmp_path / "results"),
    }  # fmt: skip


BAD_SETTINGS = [
    {
        "WEIGHTS": "nowhere.h5", "FINE_TUNED_STAGES": "conv5", "IMAGES_PER_CLASS": 0,
        "MODEL_PATH": "model.h5", "IMAGE_SIZES": [96, 31], "BATCH_SIZE": 64.0, "HEAD_EPOCHS": 0,
        "LEARNING_RATE": 1, "WEIGHT_DECAY": "a", "HEAD_LEARNING_RATE": 0, "DTYPE": "float16",
        "SEED": -1, "SPLIT": "latitude", "SPLIT_SEED": None, "RESULTS_DIR": 2024, "DATA_DIR": 5,
    },
    {"IMAGE_SIZES": [], "SEED": True, "LEARNING_RATE": "1e-3", "BATCH_SIZE": [64], "DTYPE": []},
    {"IMAGE_SIZES": 96, "FINE_TUNED_STAGES": ["conv6"], "MODEL_PATH": 7, "WEIGHTS": None},
    {"RESULTS_DIR": "", "MODEL_PATH": None, "DATA_DIR": 1e3},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_SETTINGS)
def test_all_settings_that_cannot_work_are_named_before_any_work(settings, tmp_path, bad):
    with pytest.raises(ValueError, match="Please change these settings") as error:
        Run(settings | bad)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == len(bad)
    assert all(name in str(error.value) for name in bad)
    assert not (tmp_path / "results").exists()


def test_folder_that_cannot_be_written_to_is_named_before_any_work(settings, tmp_path):
    (tmp_path / "results").mkdir(mode=0o555)
    program = "import json, sys, eurosat_utils; eurosat_utils.Run(json.loads(sys.argv[1]))"
    command = [*ordinary_user(), sys.executable, "-c", program, json.dumps(settings)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert process.returncode != 0
    assert re.search(
        r"ValueError: .*results cannot be written to \(.*Permission.*Choose", process.stderr
    )


def test_step_needs_those_before_it_and_drops_those_after_it(settings):
    run = Run(settings)
    with pytest.raises(RuntimeError, match=r"not done: data, split\)\. Select the cell below Set"):
        run.step("network").__enter__()
    for name in ("data", "split", "network", "backup", "head"):
        with run.step(name):
            pass
    with pytest.raises(ZeroDivisionError), run.step("fine-tuning"):
        1 / 0  # noqa: B018
    assert list(run.seconds) == ["data", "split", "network", "backup", "head"]
    with run.step("data"):
        pass
    assert list(run.seconds) == ["data"]


def train(run, model, batch, epochs):
    """Do what the cells of the notebook do, up to some epoch; return the run."""
    for name in ("data", "split", "network"):
        with run.step(name):
            pass
    with run.step("backup"):
        run.open_backup(split_sha256="abc")
    with run.step("head"):
        if not run.history:
            row = {"accuracy": 0.5, "val_accuracy": 0.5, "loss": 1.0, "val_loss": 1.0}
            run.save_backup(model, [row | {"phase": "head", "epoch": 0}])
    run.load_backup(model)
    for epoch in range(run.finished, epochs):
        random = np.random.default_rng(epoch)
        order = random.permutation(len(batch[0]))
        fitted = model.fit(batch[0][order], batch[1][order], shuffle=False, verbose=0)
        row = {name: values[-1] for name, values in fitted.history.items()}
        run.save_backup(model, [row | {"phase": "fine-tuning", "epoch": epoch, "seconds": 1.5}])
    return run


def new_model(seed=0):
    keras.utils.set_random_seed(seed)
    tile = keras.Input((64, 64, 3), dtype="uint8")
    x = layers.AveragePooling2D(16)(keras.ops.cast(tile, "float32") / 255)
    model = keras.Model(tile, layers.Dense(10, activation="softmax")(layers.Flatten()(x)))
    optimizer = keras.optimizers.AdamW(RiseAndFall(0.01, 4))
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def test_interrupted_run_goes_on_exactly(settings, batch, tmp_path, capsys):
    whole = new_model()
    finished = train(Run(settings), whole, batch, epochs=4)
    finished.delete_backup()
    train(Run(settings), new_model(), batch, epochs=2)
    resumed = new_model(seed=1)
    run = train(Run(settings), resumed, batch, epochs=4)
    assert "An interrupted run was found: it goes on after 2 epochs." in capsys.readouterr().out
    assert run.resumed
    assert run.finished == 4
    assert [row["epoch"] for row in run.history] == [0, 0, 1, 2, 3]
    for one, other in zip(values_of(whole), values_of(resumed), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert run.record(more=1)["seconds"]["fine-tuning"] == 6
    assert finished.history[-1]["loss"] == pytest.approx(run.history[-1]["loss"], rel=1e-5)


def test_kill_while_an_epoch_is_saved_loses_only_that_epoch(settings, batch, tmp_path):
    train(Run(settings), new_model(), batch, epochs=2)
    folder = tmp_path / "models" / "model.backup"
    assert {path.name for path in folder.iterdir()} == {
        "settings.json", "history.csv", "epoch-2.weights.h5",
    }  # fmt: skip
    history = pd.read_csv(folder / "history.csv")  # killed after this, before the weights
    pd.concat([history, history.tail(1).assign(epoch=2)]).to_csv(folder / "history.csv")
    (folder / ".123.epoch-3.weights.h5").write_bytes(b"half")
    run = Run(settings)
    run.open_backup(split_sha256="abc")
    assert run.finished == 2
    assert [row["epoch"] for row in run.history] == [0, 0, 1]


def test_damaged_backup_is_named(settings, batch, tmp_path):
    train(Run(settings), new_model(), batch, epochs=1)
    file = tmp_path / "models" / "model.backup" / "epoch-1.weights.h5"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"epoch-1.weights.h5 is damaged or gone .* Delete"):
        train(Run(settings), new_model(), batch, epochs=2)


OTHER = {
    "DATA_DIR": "elsewhere", "SPLIT": "longitude", "SPLIT_SEED": 1, "IMAGES_PER_CLASS": 60,
    "WEIGHTS": "imagenet", "IMAGE_SIZES": [64, 96, 96], "FINE_TUNED_STAGES": ["conv4", "conv5"],
    "BATCH_SIZE": 32, "HEAD_EPOCHS": 5, "HEAD_LEARNING_RATE": 1e-2, "LEARNING_RATE": 1e-4,
    "WEIGHT_DECAY": 0.0, "DTYPE": "float32", "SEED": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("state", ["finished", "interrupted"])
def test_setting_changed_in_a_living_notebook_starts_a_new_run(
    settings, batch, tmp_path, capsys, name, state
):
    namespace, model = dict(settings), new_model()
    run = train(Run(namespace), model, batch, epochs=2)
    if state == "finished":
        with run.step("fine-tuning"):
            pass
        run.delete_backup()
    namespace[name] = OTHER[name]
    with pytest.raises(RuntimeError, match=rf"do not belong to this one \({name} changed\)"):
        run.step("fine-tuning").__enter__()  # only this cell was run again
    again = Run(namespace)
    with pytest.raises(RuntimeError, match="not done: data, split, network, backup, head"):
        again.step("fine-tuning").__enter__()  # the cells in between were left out
    again = train(again, new_model(), batch, epochs=0)
    assert again.finished == 0
    assert not again.resumed
    assert again.record()["parameters"][name] == OTHER[name]
    said = f"An interrupted run had other {name}." in capsys.readouterr().out
    assert said == (state == "interrupted")
    aside = tmp_path / "models" / "model.old-backup"
    assert (aside / "epoch-2.weights.h5").is_file() == (state == "interrupted")


def test_all_settings_but_the_places_of_outputs_are_tried_in_a_living_notebook():
    assert set(SETTINGS) - set(OTHER) == {"MODEL_PATH", "RESULTS_DIR"}


# ---------------------------------------------------------------- saving and calibration


def test_saved_model_is_compressed_and_answers_as_before(small_model, batch, tmp_path):
    small_model.set_weights(eu.round_weights(small_model.get_weights()))
    saved = eu.save_model(small_model, tmp_path / "new" / "model.keras", batch[0])
    with zipfile.ZipFile(tmp_path / "new" / "model.keras") as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}
    for old, new in zip(small_model.get_weights(), saved.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_model_that_answers_otherwise_does_not_replace_the_one_there(small_model, batch, tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("the old one")
    small_model.set_weights([np.full_like(value, np.nan) for value in small_model.get_weights()])
    with pytest.raises(RuntimeError, match="answers differently: .* was not replaced"):
        eu.save_model(small_model, path, batch[0])
    assert path.read_text() == "the old one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.keras"]


@pytest.fixture(scope="module")
def overconfident():
    """Probabilities whose logits are 2.5 times too large, and labels drawn from the true ones."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 10))
    labels = np.array([random.choice(10, p=row) for row in softmax(logits, axis=1)])
    return softmax(2.5 * logits, axis=1), labels


def test_temperature_is_found_and_calibrates_without_changing_an_answer(overconfident):
    probabilities, labels = overconfident
    temperature = eu.fit_temperature(probabilities, labels)
    assert temperature == pytest.approx(2.5, rel=0.08)
    calibrated = eu.apply_temperature(probabilities, temperature)
    np.testing.assert_allclose(calibrated.sum(axis=1), 1)
    np.testing.assert_array_equal(calibrated.argmax(axis=1), probabilities.argmax(axis=1))
    error = eu.calibration_bins(calibrated, labels)[0]
    assert error < 0.03 < 0.2 < eu.calibration_bins(probabilities, labels)[0]


def test_temperature_can_be_undone_and_survives_zeros():
    probabilities = softmax(np.random.default_rng(0).normal(size=(5, 10)), axis=1)
    there = eu.apply_temperature(probabilities, 2.0)
    np.testing.assert_allclose(eu.apply_temperature(there, 0.5), probabilities)
    certain = np.eye(10, dtype=np.float32)
    assert np.isfinite(eu.apply_temperature(certain, 0.5)).all()


def test_calibration_bins_count_every_tile():
    probabilities = np.zeros((4, 10))
    probabilities[:, 0], probabilities[:, 1] = [1, 1, 0.6, 0.6], [0, 0, 0.4, 0.4]
    error, bins = eu.calibration_bins(probabilities, np.array([0, 0, 0, 1]))
    assert bins["tiles"].tolist() == [2, 2]
    assert bins["accuracy"].tolist() == [0.5, 1]
    assert error == pytest.approx(0.5 * 0.1)


def test_nothing_is_left_of_a_backup_that_is_deleted(settings, batch, tmp_path):
    train(Run(settings), new_model(), batch, epochs=1).delete_backup()
    assert list((tmp_path / "models").iterdir()) == []
    shutil.rmtree(tmp_path / "models")
