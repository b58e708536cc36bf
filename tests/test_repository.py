"""What is committed: style, executed notebooks, and numbers in prose that equal `results/`."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
import pooch
import pytest
from conftest import REPOSITORY

from eurosat_utils import training_pflop

RESULTS = REPOSITORY / "results"


def read(name):
    return (REPOSITORY / name).read_text("utf-8")


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]])
def test_style(arguments):
    command = [sys.executable, "-m", "ruff", *arguments, str(REPOSITORY)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


def test_lines_are_as_wide_as_a_page_shows():
    assert tomllib.loads(read(".ruff.toml"))["line-length"] == 100


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
    assert path.stat().st_size < 50e6
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
    tracked = ["git", "ls-files", "results"]
    process = subprocess.run(tracked, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for path in map(Path, process.stdout.splitlines()):
        if path.parent == Path("results") and path.suffix == ".png":
            assert f"]({path.name})" in gallery, path
        elif path.parent == Path("results") and path.name != "README.md":
            assert f"`{path.name}`" in gallery or path.name.startswith("inference"), path


def test_table_of_recipes_says_what_each_run_cost_and_brought():
    recipes = pd.read_csv(RESULTS / "recipes.csv")
    assert set(recipes["question"]) == {"cost", "choice"}
    assert recipes["validation_accuracy"].between(0.9, 1).all()
    needed = ["image_sizes", "learning_rate", "arithmetic", "processor", "minutes"]
    assert recipes[needed].notna().all(axis=None)
    epochs = recipes["image_sizes"].str.split().str.len()
    minutes = epochs * recipes["training_tiles"] / recipes["tiles_per_second"] / 60
    assert ((minutes - recipes["minutes"]).abs() / recipes["minutes"] < 0.02).all()


@pytest.fixture(scope="module")
def splits():
    return pd.read_csv(RESULTS / "splits.csv", dtype={"split_seed": "Int64"})


def test_splits_follow_from_the_records_of_their_runs(splits):
    folders = [RESULTS, *(RESULTS / "runs").iterdir()]
    assert len(splits) == len(folders)
    for folder in folders:
        record = json.loads((folder / "run.json").read_text("utf-8"))
        settings, metrics = record["parameters"], record["metrics"]
        assert settings["RESULTS_DIR"] == folder.relative_to(REPOSITORY).as_posix()
        rows = splits[splits["split"] == settings["SPLIT"]]
        rows = rows[(rows["accuracy"] - metrics["accuracy"]).abs() < 5e-5]
        (row,) = rows[(rows["pflop"] - record["pflop"]).abs() < 5e-5].to_dict("records")
        assert row["seed"] == settings["SEED"]
        assert row["macro_f1"] == pytest.approx(metrics["macro_f1"], abs=5e-5)
        assert record["pflop"] == pytest.approx(training_pflop(settings["IMAGE_SIZES"], 16_200))
        if settings["SPLIT"] == "random":
            assert row["split_seed"] == settings["SPLIT_SEED"]


def test_default_and_short_preset_are_those_of_the_tables(splits, run):
    pflop = splits.groupby("recipe")["pflop"].first()
    assert run["pflop"] == pytest.approx(pflop["default"], abs=5e-5)
    assert pflop["default"] <= 0.55
    assert pflop["short preset"] <= 0.3
    record = json.loads(read("results/runs/short-longitude/run.json"))
    sizes = str(record["parameters"]["IMAGE_SIZES"])
    cells = nbformat.read(REPOSITORY / "Training.ipynb", as_version=4).cells
    assert f"IMAGE_SIZES = {sizes}" in cells[3].source
    assert any(f'"short preset": {sizes}' in cell.source for cell in cells)
    assert f'-y "IMAGE_SIZES: {sizes}"' in read("README.md")


def test_numbers_in_prose_equal_those_in_results(run, splits):
    readme = read("README.md")
    introduction = nbformat.read(REPOSITORY / "Training.ipynb", as_version=4).cells[0].source
    default = splits[splits["recipe"] == "default"]
    known, unseen = (default[default["split"] == split] for split in ("random", "longitude"))
    short = splits[splits["recipe"] == "short preset"]
    numbers, said, accuracies = [], [], []
    for rows in (known, unseen):
        accuracy = rows["accuracy"]
        accuracies.append(accuracy.mean())
        said += [f"**{accuracy.mean():.2%}**", f"{accuracy.min():.2%} to {accuracy.max():.2%}"]
        means = rows[["macro_f1", "log_loss", "calibration_error"]].mean()
        numbers += [f"{accuracy.mean():.2%}", *(f"{mean:.4f}" for mean in means)]
    said += [f"{accuracy:.2%}" for accuracy in short.groupby("split")["accuracy"].mean()]
    minutes = f"{run['seconds']['fine-tuning'] / 60:.0f} min"
    for number in [*said, minutes]:
        assert number in introduction, f"the introduction does not say {number!r}"
    mosaic = pd.read_csv(RESULTS / "mosaic.csv")
    right = (mosaic["label"] == mosaic["truth"]).mean()
    numbers += [*said, minutes, f"{run['metrics']['accuracy']:.2%}"]
    numbers += [f"{right:.2%} of them right", f"{run['pflop']:.2f} PFLOP"]
    numbers += [f"{short['pflop'].iloc[0]:.2f} PFLOP", run["weights"]["file"]]
    times = (1 - accuracies[1]) / (1 - accuracies[0])
    for number in [*numbers, f"{times:.1f} times the errors"]:
        assert number in readme, f"README.md does not say {number!r}"
    for figure in [line.split("(")[1][:-1] for line in readme.splitlines() if line[:2] == "!["]:
        assert (REPOSITORY / figure).is_file()
    assert len(readme.split()) <= 1300
