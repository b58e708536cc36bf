"""What is committed: style, executed notebooks, and numbers in prose that equal `results/`."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pooch
import pytest
from conftest import REPOSITORY

RESULTS = REPOSITORY / "results"


def read(name):
    return (REPOSITORY / name).read_text("utf-8")


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]])
def test_style(arguments):
    command = [sys.executable, "-m", "ruff", *arguments, str(REPOSITORY)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.fixture(params=["Training.ipynb", "Inference.ipynb"])
def notebook(request):
    return nbformat.read(REPOSITORY / request.param, as_version=4)


def test_notebook_is_committed_as_executed_in_order_without_errors(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert None not in counts
    assert counts == sorted(set(counts))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [
        output
        for output in outputs
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


def test_figures_of_a_notebook_have_a_text_for_those_who_cannot_see_them(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert figures
    assert all(output.metadata.get("image/png", {}).get("alt") for output in figures)


def test_notebook_has_one_cell_of_settings_and_each_has_a_comment(notebook):
    (settings,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert all(" = " in line and "  # " in line for line in settings.source.splitlines())
    assert not [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", [])]


def test_ci_runs_the_test_command_of_the_readme():
    command = read(".ci/run").splitlines()[-1]
    assert f"```bash\n{command}\n```" in read("README.md")
    assert command in read(".github/workflows/tests.yml")


def test_sizes_of_committed_files():
    command = ["git", "ls-files"]
    tracked = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    sizes = {name: (REPOSITORY / name).stat().st_size for name in tracked.stdout.splitlines()}
    assert all(size < 3e6 for name, size in sizes.items() if name.endswith(".ipynb"))
    assert all(size < 500e3 for name, size in sizes.items() if name.endswith(".png"))


@pytest.fixture(scope="module")
def run():
    return json.loads(read("results/run.json"))


def test_model_that_is_included_is_the_one_that_was_tested(run):
    path = REPOSITORY / "models" / "eurosat_resnet50.keras"
    digest = pooch.file_hash(path)
    assert digest == run["model_sha256"]
    assert digest in read("models/README.md")
    assert f"{run['metrics']['accuracy']:.2%}" in read("models/README.md")
    program = (  # in a process that knows none of our code
        "import keras, numpy, sys; model = keras.saving.load_model(sys.argv[1]);"
        "print(model.predict(numpy.zeros((1, 64, 64, 3), 'uint8'), verbose=0).shape)"
    )
    command = [sys.executable, "-c", program, str(path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.stdout.strip() == "(1, 10)", process.stderr


def test_map_of_the_mosaic_agrees_with_the_test():
    mosaic = pd.read_csv(RESULTS / "mosaic.csv")
    answers = pd.read_csv(RESULTS / "test_predictions.csv").set_index("file").loc[mosaic["file"]]
    assert len(mosaic) == 400
    assert list(mosaic["label"]) == list(answers["predicted"])


def test_gallery_shows_every_figure_and_names_every_table():
    gallery = read("results/README.md")
    for path in RESULTS.glob("*.*"):
        if path.name != "README.md":
            written = f"]({path.name})" if path.suffix == ".png" else f"`{path.name}`"
            assert written in gallery, path


@pytest.fixture(scope="module")
def splits():
    return pd.read_csv(RESULTS / "splits.csv", dtype={"split_seed": "Int64"})


def test_included_run_is_in_the_table_of_runs(run, splits):
    row = splits.query("recipe == 'default' and split == 'random' and split_seed == 0").iloc[0]
    metrics = run["metrics"]
    assert row["accuracy"] == pytest.approx(metrics["accuracy"], abs=5e-5)
    assert row["validation_log_loss"] == pytest.approx(metrics["validation_log_loss"], abs=5e-5)
    assert row["macro_f1"] == pytest.approx(metrics["macro_f1"], abs=5e-5)
    settings = nbformat.read(REPOSITORY / "Training.ipynb", as_version=4).cells
    (settings,) = [c.source for c in settings if "parameters" in c.metadata.get("tags", [])]
    for name in ("IMAGE_SIZE", "EPOCHS", "BATCH_SIZE", "LEARNING_RATE"):
        (line,) = [line for line in settings.splitlines() if line.startswith(f"{name} = ")]
        assert float(line.split("=")[1].split("#")[0]) == run["parameters"][name]


def test_numbers_in_prose_equal_those_in_results(run, splits):
    readme, gallery = read("README.md"), read("results/README.md")
    metrics = run["metrics"]
    low, high = metrics["accuracy_95_percent_interval"]
    numbers = [f"**{metrics['accuracy']:.2%}**", f"{low:.2%} to {high:.2%}"]
    for _, rows in splits[splits["recipe"] == "default"].groupby("split"):
        accuracy = rows["accuracy"]
        numbers += [f"{accuracy.mean():.2%}", f"{accuracy.min():.2%} to {accuracy.max():.2%}"]
    more_labels = splits[splits["recipe"] == "default, 76% of the labels"]["accuracy"]
    numbers += [f"{more_labels.mean():.2%}"]
    numbers += [f"{metrics['macro_f1']:.4f}"]
    after = metrics["calibration"]["after calibration"]
    numbers += [f"{after['log_loss']:.4f}", f"{after['expected_calibration_error']:.4f}"]
    mosaic = pd.read_csv(RESULTS / "mosaic.csv")
    numbers += [f"{(mosaic['label'] == mosaic['truth']).mean():.2%} of them right"]
    numbers += [run["weights"]["file"]]
    for number in numbers:
        assert number in readme, f"README.md does not say {number!r}"
    said = [f"{metrics['validation_log_loss']:.4f}, {metrics['validation_accuracy']:.2%}"]
    said += [f"{more_labels.min():.2%} to {more_labels.max():.2%}"]
    compared = splits[splits["recipe"] != "default, 76% of the labels"]
    for _, rows in compared.groupby(["recipe", "split"]):
        loss, accuracy = rows["validation_log_loss"].mean(), rows["validation_accuracy"].mean()
        said.append(f"{loss:.4f}, {accuracy:.2%}")
    for number in said:
        assert number in gallery, f"results/README.md does not say {number!r}"
    for figure in [line.split("(")[1][:-1] for line in readme.splitlines() if line[:2] == "!["]:
        assert (REPOSITORY / figure).is_file()
    assert len(readme.split()) <= 900


def test_dask_workers_make_the_same_maps_as_one_process(tmp_path):
    pytest.importorskip("dask.distributed")
    sys.path.insert(0, str(Path(__file__).parent))
    import numpy as np
    from dask_scenes import map_folder
    from PIL import Image

    import eurosat_utils as eu

    model_path = REPOSITORY / "models" / "eurosat_resnet50.keras"
    scenes = tmp_path / "scenes"
    scenes.mkdir()
    colours = np.load(RESULTS / "training_colours.npy")
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 128, 3), np.uint8)
        Image.fromarray(pixels).save(scenes / f"{seed}.png")
    here = eu.map_images(eu.open_model(model_path), scenes, tmp_path / "here", colours)
    there = map_folder(scenes, tmp_path / "there", model_path, training_colours=colours)
    columns = ["image", "tiles", "largest_class", "warning"]
    pd.testing.assert_frame_equal(here[columns], there[columns])
    assert (tmp_path / "there" / "1" / "1_map.png").is_file()
