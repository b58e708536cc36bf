"""What is committed: style, executed notebooks, and numbers in prose that equal those in `results/`."""

import json
import subprocess
import sys

import nbformat
import pandas as pd
import pooch
import pytest
from conftest import REPOSITORY

NOTEBOOKS = ("Training.ipynb", "Inference.ipynb")


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]])
def test_style(arguments):
    command = [sys.executable, "-m", "ruff", *arguments, str(REPOSITORY)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr


@pytest.fixture(params=NOTEBOOKS)
def notebook(request):
    return nbformat.read(REPOSITORY / request.param, as_version=4)


def test_notebook_is_committed_as_executed_in_order_without_errors(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert None not in counts
    assert counts == sorted(set(counts))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


def test_notebook_has_one_cell_of_settings_and_each_has_a_comment(notebook):
    (settings,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert all(" = " in line and "  # " in line for line in settings.source.splitlines())
    assert not [cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", [])]


def test_ci_runs_the_test_command_of_the_readme():
    command = (REPOSITORY / ".ci" / "run").read_text().splitlines()[-1]
    assert f"```bash\n{command}\n```" in (REPOSITORY / "README.md").read_text("utf-8")
    assert command in (REPOSITORY / ".github" / "workflows" / "tests.yml").read_text()


def test_sizes_of_committed_files():
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    sizes = {name: (REPOSITORY / name).stat().st_size for name in tracked.splitlines()}
    assert all(size < 3e6 for name, size in sizes.items() if name.endswith(".ipynb"))
    assert all(size < 500e3 for name, size in sizes.items() if name.endswith(".png"))


def test_model_that_is_included_is_the_one_that_was_tested():
    path = REPOSITORY / "models" / "eurosat_resnet50.keras"
    run = json.loads((REPOSITORY / "results" / "run.json").read_text())
    digest = pooch.file_hash(path)
    assert digest == run["model_sha256"]
    text = (REPOSITORY / "models" / "README.md").read_text("utf-8")
    assert digest in text
    assert f"{run['metrics']['accuracy']:.2%}" in text
    assert path.stat().st_size < 50e6
    program = (  # in a process that knows none of our code
        "import keras, numpy, sys; model = keras.saving.load_model(sys.argv[1]);"
        "print(model.predict(numpy.zeros((1, 64, 64, 3), 'uint8'), verbose=0).shape)"
    )
    process = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert process.stdout.strip() == "(1, 10)", process.stderr


def test_module_is_small_and_map_of_the_mosaic_agrees_with_the_test():
    assert len((REPOSITORY / "eurosat_utils.py").read_text("utf-8").splitlines()) < 500
    mosaic = pd.read_csv(REPOSITORY / "results" / "mosaic.csv")
    predictions = pd.read_csv(REPOSITORY / "results" / "test_predictions.csv").set_index("file").loc[mosaic["file"]]
    assert len(mosaic) == 400
    assert list(mosaic["label"]) == list(predictions["predicted"])


def test_table_of_recipes_says_what_each_run_cost_and_brought():
    recipes = pd.read_csv(REPOSITORY / "results" / "recipes.csv")
    assert set(recipes["question"]) == {"cost", "choice"}
    assert recipes["validation_accuracy"].between(0.9, 1).all()
    assert recipes[["image_sizes", "learning_rate", "arithmetic", "processor", "minutes"]].notna().all(axis=None)
    epochs = recipes["image_sizes"].str.split().str.len()
    minutes = epochs * recipes["training_tiles"] / recipes["tiles_per_second"] / 60
    assert ((minutes - recipes["minutes"]).abs() / recipes["minutes"] < 0.02).all()


def test_numbers_in_prose_equal_those_in_results():
    metrics = json.loads((REPOSITORY / "results" / "metrics.json").read_text())
    run = json.loads((REPOSITORY / "results" / "run.json").read_text())
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    introduction = nbformat.read(REPOSITORY / "Training.ipynb", as_version=4).cells[0].source
    low, high = metrics["accuracy_95_percent_interval"]
    mosaic = pd.read_csv(REPOSITORY / "results" / "mosaic.csv")
    minutes = sum(run["seconds"].values()) / 60
    recipes = pd.read_csv(REPOSITORY / "results" / "recipes.csv")
    short = recipes.loc[recipes["recipe"] == "3x96, 1x128, conv2 to conv5 learn", "test_accuracy"]
    assert len(short) == 3
    short_preset = f"{short.mean():.2%}", f"{short.min():.2%} to {short.max():.2%}"
    before, after = (metrics["calibration"][f"{when} calibration"] for when in ("before", "after"))
    for text in (
        f"{metrics['accuracy']:.2%}",
        f"{low:.2%} to {high:.2%}",
        f"{metrics['macro_f1']:.4f}",
        f"{metrics['validation_accuracy']:.2%}",
        f"{minutes:.0f} minutes",
        f"{run['machine']['peak_memory_gb']:.1f} GB",
        run["weights"]["file"],
        f"mosaic of {len(mosaic)} test tiles ({(mosaic['label'] == mosaic['truth']).mean():.2%} of them right",
        *(f"{scores[name]:.4f}" for scores in (before, after) for name in scores),
        *short_preset,
    ):
        assert text in readme, f"README.md does not say {text!r}"
    for text in (
        f"{metrics['accuracy']:.2%}",
        f"{minutes:.0f} minutes",
        f"{run['machine']['peak_memory_gb']:.1f} GB",
        *short_preset,
    ):
        assert text in introduction, f"The introduction of Training.ipynb does not say {text!r}"
    for figure in [line.split("(")[1].split(")")[0] for line in readme.splitlines() if line.startswith("![")]:
        assert (REPOSITORY / figure).is_file()
