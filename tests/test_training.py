"""What Training.ipynb does besides its figures, without a kernel: its cells and what they call."""

import ast
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pooch
import pytest
from conftest import cell_with, code_cells
from draw_tiles import draw_scene
from IPython.core.interactiveshell import InteractiveShell
from keras import layers
from traitlets.config import Config

import eurosat_utils as eu

CELL = """
EPOCHS, BATCH_SIZE, LEARNING_RATE = 4, 8, 0.01
images = np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8)
labels = np.random.default_rng(0).integers(0, 10, 30)
train, validation = np.arange(20), np.arange(20, 30)
split = pd.DataFrame({"file": ["a"], "label": ["River"], "split": ["train"]})
weights_file, md5, is_published, dtype = Path("file.h5"), "abc", False, "float32"
"""


def notebook(folder, seed=0, **changed):
    """Return the names in Training.ipynb before it trains: a small network, tiles of noise."""
    names = {"eu": eu}
    for cell in (cell_with("import tensorflow as tf"), cell_with("SPLIT_SEED = 0"), CELL):
        exec(cell, names)
    names |= {"MODEL_PATH": folder / "model.keras", "RESULTS_DIR": folder} | changed
    names |= {"run": eu.Run(names), "network": small_network(seed)}
    for text in ("def turn_tiles", "def training_b", "class RiseA", "stop_at_nan =", "open_backup"):
        exec(cell_with(text), names)
    if not names["run"].history:
        names["run"].save_backup(names["network"], [{"phase": "head", "epoch": 0}])
    return names


def small_network(seed=0):
    tile = keras.Input((64, 64, 3), dtype="uint8")
    means = layers.AveragePooling2D(16)(keras.ops.cast(tile, "float32") / 255)
    initial = keras.initializers.GlorotUniform(seed)
    head = layers.Dense(10, activation="softmax", kernel_initializer=initial)
    return keras.Model(tile, head(layers.Flatten()(means)))


def tuned(*epochs):
    return [{"phase": "fine-tuning", "epoch": epoch} for epoch in epochs]


def epochs_in(folder, backup="model.backup"):
    return sorted(path.name for path in (folder / backup).iterdir())


def assert_close(actual, expected, share=1e-5):
    """Compare with a tolerance in proportion to the largest value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=share * np.abs(expected).max())


def assert_same_weights(one, other):
    for weight, same in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)


def fail(*arguments, **options):
    raise OSError("no space")


def test_folding_batch_normalisation_changes_no_answer():
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(5, 3, 2, name="a_conv")(image)
    network = keras.Model(image, layers.BatchNormalization(name="a_bn", epsilon=0.1)(x))
    random = np.random.default_rng(0)
    network.set_weights([random.uniform(0.1, 2, weight.shape) for weight in network.get_weights()])
    folded = eu.fold_normalisation(network)
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in folded.layers)
    images = random.normal(size=(4, 16, 16, 3)).astype(np.float32)
    assert_close(folded(images), network(images, training=False))


def test_backbone_starts_from_a_weights_file_or_a_model_of_the_notebook(weights, tmp_path):
    backbone = eu.load_backbone(weights)
    options = {"include_top": False, "pooling": "avg", "input_shape": (32, 32, 3)}
    original = keras.applications.ResNet50(weights=weights, **options)
    images = np.random.default_rng(0).normal(0, 50, (2, 32, 32, 3)).astype(np.float32)
    assert_close(backbone(images), original(images, training=False), share=1e-4)
    image = keras.Input((32, 32, 3))
    keras.Model(image, layers.Dense(10)(backbone(image))).save(tmp_path / "model.keras")
    again = eu.load_backbone(tmp_path / "model.keras", "bfloat16")
    assert_same_weights(again, backbone)
    assert again.layers[-1].compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"
    with pytest.raises(KeyError, match="float16"):
        eu.load_backbone(weights, "float16")


def save_without_a_layer(path, file):
    shutil.copy(file, path)
    with h5py.File(path, "a") as content:
        del content["layers/conv2d_10"]


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("other.weights.h5", lambda path, file: small_network().save_weights(path)),
        ("gap.weights.h5", save_without_a_layer),
        ("half.weights.h5", lambda path, file: path.write_bytes(file.read_bytes()[:10_000_000])),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(weights, tmp_path, recwarn, name, save):
    save(tmp_path / name, weights)
    with pytest.raises(ValueError, match=f"WEIGHTS: .*{name} cannot be loaded"):
        eu.load_backbone(tmp_path / name, "bfloat16")
    assert keras.config.dtype_policy().name == "float32"
    assert not [warning for warning in recwarn if "container" in str(warning.message)]


def test_learning_rate_rises_falls_and_never_leaves_its_range(tmp_path):
    schedule = notebook(tmp_path)["RiseAndFall"](0.1, 100)
    rates = np.array([float(schedule(step)) for step in [*range(100), 101, 1000, 1e6]])
    assert 0 <= rates.min() < 0.098 < rates.max() <= np.float32(0.1)
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[10:101]) < 0).all()
    assert (rates[100:] == 0).all()


def test_eight_turns_are_the_eight_symmetries(tmp_path):
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    turned = notebook(tmp_path)["turn_tiles"](np.stack([tile] * 8), np.arange(8)).numpy()
    views = [np.rot90(view, number) for view in (tile, tile[::-1]) for number in range(4)]
    assert {view.tobytes() for view in turned} == {view.tobytes() for view in views}


def test_places_that_cannot_be_written_to_are_named_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=r"MODEL_PATH must end in \.keras, not model\.h5"):
        notebook(tmp_path, MODEL_PATH="model.h5")
    (tmp_path / "in the way").write_text("a file")
    with pytest.raises(OSError, match="in the way"):
        notebook(tmp_path, RESULTS_DIR=tmp_path / "in the way")


@pytest.mark.parametrize("step", ["check", "open_backup", "save_backup", "load_backup", "record"])
def test_settings_changed_in_a_living_notebook_stop_it(tmp_path, step):
    names = notebook(tmp_path)
    network = names["network"]
    arguments = {"save_backup": [network, tuned(0)], "load_backup": [network]}.get(step, [])
    names |= {"LEARNING_RATE": 1, "SPLIT": "longitude"}
    with pytest.raises(eu.ChangedSettings, match=r"^SPLIT, LEARNING_RATE changed\. Select the"):
        getattr(names["run"], step)(*arguments)
    assert epochs_in(tmp_path) == ["epoch-0"]


def test_no_cell_can_be_left_out_unnoticed_after_new_settings(tmp_path):
    cells = code_cells()
    (start,) = [index for index, cell in enumerate(cells) if "eu.Run(globals())" in cell]
    maker, used = {}, {}
    for number, cell in enumerate(cells[start + 1 :]):
        parts = [part for part in ast.parse(cell).body if not hasattr(part, "decorator_list")]
        nodes = [node for part in parts for node in ast.walk(part) if isinstance(node, ast.Name)]
        made = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
        for name in ({node.id for node in nodes} - made) & maker.keys():
            used.setdefault(maker[name], []).append(name)
        maker |= dict.fromkeys(made - {"published"}, number)
    names = notebook(tmp_path) | dict.fromkeys(maker, "old")
    exec(cells[start], names)
    unnoticed = [made for made in used.values() if all(names.get(name) == "old" for name in made)]
    assert unnoticed == []  # the cell that begins a run must forget one of each


def test_interrupt_and_changed_settings_show_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell(config=Config(HistoryManager=Config(enabled=False)))
    monkeypatch.setattr(eu, "get_ipython", lambda: shell)
    shell.push({"eu": eu, "EPOCHS": 4, "MODEL_PATH": tmp_path / "a.keras", "RESULTS_DIR": tmp_path})
    assert shell.run_cell("run = eu.Run(globals())").success
    for cell, said in {
        "run.check()": "A cell was left out. Select the Settings cell and choose Run >",
        "raise KeyboardInterrupt": "Stopped. To go on, choose Run > Run Selected Cell and All",
        "EPOCHS = 5; run.check()": "EPOCHS changed. Select the Settings cell and choose Run > Run",
    }.items():
        assert not shell.run_cell(cell).success
        output = capsys.readouterr()
        assert output.out.startswith(said)
        assert (output.out.count("\n"), output.err) == (1, "")


def test_loss_that_is_not_a_number_stops_the_training_and_is_not_saved(tmp_path):
    names = notebook(tmp_path)
    names["network"].set_weights([np.nan * weight for weight in names["network"].get_weights()])
    names["run"].save_backup(names["network"], tuned(0))
    with pytest.raises(RuntimeError, match="NaN or Inf loss"):
        exec(cell_with("run.load_backup(network)"), names)
    assert epochs_in(tmp_path) == ["epoch-1"]


def test_interrupted_run_goes_on_exactly(tmp_path, capsys):
    whole, stopped = notebook(tmp_path / "whole"), notebook(tmp_path)
    cell = cell_with("run.load_backup(network)")
    exec(cell.replace("EPOCHS", "2"), stopped)
    resumed = notebook(tmp_path, seed=1)
    assert "An interrupted run was found: it goes on after 2 epochs." in capsys.readouterr().out
    variables = []
    for names in (whole, resumed):
        exec(cell, names)
        variables.append([*names["network"].variables, *names["optimizer"].variables])
    assert epochs_in(tmp_path) == ["epoch-4"]
    assert [row["epoch"] for row in resumed["run"].history] == [0, 0, 1, 2, 3]
    assert [whole["run"].resumed, resumed["run"].resumed] == [False, True]
    for expected, actual in zip(*variables, strict=True):
        assert_close(actual.numpy(), expected.numpy(), share=1e-4)


@pytest.mark.parametrize("name", ["LEARNING_RATE", "md5", "split", "dtype"])
def test_backup_of_other_settings_or_inputs_is_moved_aside(tmp_path, capsys, name):
    split = notebook(tmp_path)["split"].assign(file="b")
    others = {"LEARNING_RATE": 0.02, "md5": "def", "split": split, "dtype": "bfloat16"}
    assert not notebook(tmp_path, **{name: others[name]})["run"].resumed
    said = {"md5": "weights", "split": "split_sha256"}.get(name, name)
    assert f"An interrupted run had other {said}; its backup is now" in capsys.readouterr().out
    assert epochs_in(tmp_path, "model.old-backup") == ["epoch-0"]


def test_epoch_that_is_not_completely_saved_is_not_counted(tmp_path, monkeypatch):
    names = notebook(tmp_path)
    run, network, original = names["run"], names["network"], small_network()
    for target in ((Path, "rename"), (keras.Model, "save_weights")):
        network.set_weights([weight + 1 for weight in network.get_weights()])
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
            patch.setattr(*target, fail)
            run.save_backup(network, tuned(0))
        assert epochs_in(tmp_path) == ["epoch-0", "unfinished"]
        for same_or_new in (run, notebook(tmp_path)["run"]):
            assert same_or_new.load_backup(network) == same_or_new.finished == 0
            assert_same_weights(network, original)
    run.save_backup(network, tuned(0))
    assert run.load_backup(network) == 1


def test_backup_may_be_gone_only_when_the_run_is_over_and_its_network_there(tmp_path):
    names = notebook(tmp_path)
    run, network = names["run"], names["network"]
    run.delete_backup()
    with pytest.raises(FileNotFoundError, match=r"is gone\. Run all"):
        run.load_backup(network)
    run.save_backup(network, tuned(0, 1, 2, 3))
    run.delete_backup()
    network.optimizer.iterations.assign(4)
    assert run.load_backup(network) == 4
    with pytest.raises(FileNotFoundError, match=r"is gone\. Run all"):
        run.load_backup(notebook(tmp_path)["network"])  # built anew, not trained


def test_progress_tells_share_speed_and_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(eu.time, "perf_counter", lambda: now[0])
    progress = eu.Progress("epoch", 1600, epochs=2)
    progress.set_params({"steps": 40})
    progress.on_epoch_begin(0)
    for step in range(20):
        now[0] += 2.5 if step else 60  # the first step includes compiling
        progress.on_train_batch_end(step)
    line = capsys.readouterr().err.split("\r")[-1].strip()
    assert line == "epoch 1 of 2: 50%, 16 tiles/s, 2.5 min left in all"
    progress.on_epoch_end(0, {"accuracy": 0.5, "val_accuracy": 0.25})
    assert capsys.readouterr().out == "epoch 1 of 2: accuracy 50.00%, on validation 25.00%\n"
    assert progress.seconds == now[0]


def test_only_tiles_are_predicted():
    network, tiles = small_network(), np.zeros((2, 64, 64, 3), np.uint8)
    assert eu.predict(network, tiles, "test").shape == (2, 10)
    for wrong in (tiles.astype(np.uint16), tiles[:, :32, :32], tiles.swapaxes(1, 3), tiles[0]):
        with pytest.raises(ValueError, match=r"test: .* instead of uint8 \(n, 64, 64, 3\)"):
            eu.predict(network, wrong, "test")


def test_model_is_saved_compressed_and_completely_or_not_at_all(tmp_path, monkeypatch):
    path, network = tmp_path / "new" / "model.keras", small_network()
    assert_same_weights(eu.save_model(network, path), network)
    with zipfile.ZipFile(path) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_DEFLATED}
    before = path.read_bytes()
    monkeypatch.setattr(zipfile.ZipFile, "writestr", fail)
    with pytest.raises(OSError, match="no space"):
        eu.save_model(network, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_file_appears_only_when_it_is_complete_and_a_link_stays_one(tmp_path):
    target, link = tmp_path / "new" / "table.csv", tmp_path / "link.csv"
    with eu.atomic_path(target) as path:
        path.write_text("old")
        assert not target.exists()
    with pytest.raises(OSError, match="no space"), eu.atomic_path(target) as path:
        path.write_text("half")
        fail()
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("no links here")
    eu.save_table(pd.DataFrame({"file": ["\udcff.png"], "share": [1 / 3]}), link)
    assert link.is_symlink()
    assert target.read_bytes() == b"file,share\n\\udcff.png,0.3333\n"


def test_figure_is_saved_small_and_closed(tmp_path):
    figure = eu.plot_tiles([draw_scene()], ["a landscape"], columns=1, inches=6.5)
    figure.savefig(tmp_path / "whole.png", dpi=110)
    assert (tmp_path / "whole.png").stat().st_size > 500_000
    shown = eu.save_figure(figure, tmp_path / "new" / "figure.png", "a landscape")
    assert len(shown.data) < 500_000
    assert not plt.fignum_exists(figure.number)


def test_no_figure_depends_on_a_matplotlibrc():
    with mpl.rc_context():
        eu.set_style()
        expected = dict(mpl.rcParams)
        mpl.rcParams.update({"image.origin": "lower", "axes.titlesize": 40})
        eu.set_style()
        assert dict(mpl.rcParams) == expected
    with mpl.rc_context({"image.origin": "lower"}):
        tiles = np.zeros((3, 64, 64, 3), np.uint8)
        figure = eu.plot_tiles(tiles, ["a", "b", "$"], columns=3, correct=[True, False, True])
    assert [axis.images[0].origin for axis in figure.axes] == ["upper"] * 3
    styles = [axis.spines["top"].get_linestyle() for axis in figure.axes]
    assert styles[0] == styles[2] != styles[1]


def test_temperature_bins_and_interval_have_known_values():
    probabilities, labels = np.zeros((8, 10), np.float32), np.array([0, 0, 0, 1] * 2)
    probabilities[:, :2] = 0.9, 0.1  # three in four are right: 3 to 1, the square root of 9 to 1
    temperature = eu.fit_temperature(probabilities, labels)
    assert temperature == pytest.approx(2, abs=1e-3)
    calibrated = eu.apply_temperature(probabilities, temperature)
    np.testing.assert_allclose(calibrated[:, :2], [[0.75, 0.25]] * 8, rtol=0, atol=1e-3)
    error, bins = eu.calibration_bins(probabilities, labels)
    assert error == pytest.approx(0.15, abs=1e-6)
    assert eu.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998
    assert bins[["tiles", "right", "accuracy"]].to_numpy().tolist() == [[8, 6, 0.75]]


def test_only_models_of_the_notebook_are_opened(tmp_path):
    path = tmp_path / "model.keras"
    small_network().save(path)
    assert eu.open_model(str(path)).output_shape == (None, 10)
    content = bytearray(path.read_bytes())
    content[content.index(b"model.weights.h5") + 2000] ^= 1  # a bit of the weights
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.keras: Bad CRC.*Restore the file"):
        eu.open_model(path)
    image = keras.Input((32, 32, 3))
    keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(image))).save(path)
    with pytest.raises(ValueError, match=r"model\.keras takes .* not a model of Training"):
        eu.open_model(path)


def test_split_record_and_model_must_be_of_one_run(tmp_path):
    names, path = notebook(tmp_path), tmp_path / "model.keras"
    path.write_text("model")
    record = names["run"].record(model_sha256=pooch.file_hash(path))
    assert record["parameters"]["MODEL_PATH"] == str(path)
    assert set(record["parameters"]) == {name for name in names if name.isupper()}
    eu.save_json(record, tmp_path / "run.json")
    eu.save_table(names["split"], tmp_path / "split.csv")
    split, same = eu.read_run(tmp_path, path)
    assert same == record
    eu.save_table(split.assign(split="test"), tmp_path / "split.csv")
    with pytest.raises(ValueError, match=r"split\.csv is not the split of"):
        eu.read_run(tmp_path, path)
    path.write_text("another")
    with pytest.raises(ValueError, match=r"is not the model of .*RESULTS_DIR"):
        eu.read_run(tmp_path, path)
