"""Write tables about the committed runs: splits, comparisons, elsewhere and distance (.csv).

    python tests/benchmarks/summarise_splits.py [--coordinates CSV]

The runs are results/ and the folders in results/runs/, each a RESULTS_DIR of Training.ipynb. The
coordinates (columns tile, lat, lon) come from a public copy:
github.com/Vezarachan/TUM_Course_SVA_TrustGeoAI.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.neighbors import BallTree

RESULTS = Path(__file__).resolve().parents[2] / "results"
sys.path.insert(0, str(RESULTS.parent))

from eurosat_utils import CLASSES, save_table, wilson_interval  # noqa: E402

LONGITUDE = RESULTS / "runs" / "longitude"  # the default on that split
NAMES = {(96, 96, 96, 128, 160): "default", (64, 64, 64, 96, 128): "short preset"}


def summary(folder):
    """Return the row of a run."""
    run = json.loads(Path(folder, "run.json").read_text("utf-8"))
    metrics, settings = run["metrics"], run["parameters"]
    low, high = metrics["accuracy_95_percent_interval"]
    held_out = pd.read_csv(Path(folder, "validation_predictions.csv"))
    right = (held_out["label"] == held_out["predicted"]).sum()
    validation_low, validation_high = wilson_interval(right, len(held_out))
    after = metrics["calibration"]["after calibration"]
    sizes = tuple(settings["IMAGE_SIZES"])
    by_size = ", ".join(f"{sizes.count(size)}x{size}" for size in dict.fromkeys(sizes))
    return {
        "recipe": NAMES.get(sizes, by_size),
        "split": settings["SPLIT"],
        "split_seed": settings["SPLIT_SEED"] if settings["SPLIT"] == "random" else "",
        "seed": settings["SEED"],
        "validation_accuracy": right / len(held_out),
        "validation_from": validation_low,
        "validation_to": validation_high,
        "validation_log_loss": metrics["validation_log_loss"],
        "accuracy": metrics["accuracy"],
        "from": low,
        "to": high,
        "macro_f1": metrics["macro_f1"],
        "log_loss": after["log_loss"],
        "calibration_error": after["expected_calibration_error"],
        "temperature": metrics["temperature"],
        "pflop": run["pflop"],
        "minutes": run["seconds"]["fine-tuning"] / 60,
        "arithmetic": run["dtype"],
        "processor": run["processor"],
    }


def nearest_tiles(folder, places):
    """Return whether each test tile is right, and how many km from the nearest training tile."""
    validation, test = (
        pd.read_csv(folder / f"{part}_predictions.csv") for part in ("validation", "test")
    )
    for table in (validation, test):
        table.index = table["file"].map(lambda file: Path(file).stem)
    train = places.drop([*validation.index, *test.index])
    tree = BallTree(train.to_numpy(), metric="haversine")
    nearest, _ = tree.query(places.loc[test.index].to_numpy())
    right = test["label"] == test["predicted"]
    return pd.DataFrame({"right": right, "kilometres": 6371 * nearest[:, 0]})


def by_distance(coordinates):
    """Return the accuracy of test tiles by the distance to the nearest training tile."""
    places = np.radians(pd.read_csv(coordinates).set_index("tile")[["lat", "lon"]])
    here, there = (nearest_tiles(folder, places) for folder in (RESULTS, LONGITUDE))
    names = ["under 1 km", "1 to 5 km", "over 5 km"]
    ranges = pd.cut(here["kilometres"], [0, 1, 5, np.inf], labels=names, include_lowest=True)
    groups = dict(list(here["right"].groupby(ranges, observed=True)))
    far = f"{there['kilometres'].min():.0f} km and more (split by longitude)"
    rows = [
        [name, len(right), right.mean(), *wilson_interval(right.sum(), len(right))]
        for name, right in (groups | {far: there["right"]}).items()
    ]
    columns = ["nearest training tile", "tiles", "accuracy", "from", "to"]
    return pd.DataFrame(rows, columns=columns)


def confusions(runs):
    """Return how many test tiles of each class got which answer in the default's runs."""
    places = {"random": "regions it knows", "longitude": "unseen countries"}
    default, columns = runs[runs["recipe"] == "default"], {}
    for split, place in places.items():
        folders = default["folder"][default["split"] == split]
        test = pd.concat(pd.read_csv(folder / "test_predictions.csv") for folder in folders)
        matrix = pd.crosstab(test["label"], test["predicted"])
        columns[place] = matrix.reindex(index=CLASSES, columns=CLASSES, fill_value=0).stack()
    return pd.DataFrame(columns).reset_index(names=["label", "predicted"])


def answers(folder, part):
    """Return, for each tile of a part, whether the run has it right, and its loss."""
    table = pd.read_csv(Path(folder, f"{part}_predictions.csv"), index_col="file")
    of_label = table[list(CLASSES)].to_numpy()[
        np.arange(len(table)), table["label"].map(CLASSES.index)
    ]
    loss = -np.log(np.maximum(of_label, 1e-7))
    return pd.DataFrame({"right": table["label"] == table["predicted"], "loss": loss})


def bootstrap(differences, random):
    """Return 2,000 means of paired differences, each of tiles drawn with replacement."""
    return np.array([random.choice(differences, len(differences)).mean() for _ in range(2000)])


def comparisons(runs):
    """Return how the default differs from each other recipe on the same split, of one seed.

    Accuracies by McNemar's exact test, log losses by a paired bootstrap over tiles. The rows of
    both splits have the mean of both differences, by which the default was chosen.
    """
    names = (runs["split"] + " " + runs["split_seed"].astype(str)).str.strip()
    runs = runs.assign(split=names)
    default = runs[runs["recipe"] == "default"].set_index("split")["folder"]
    others = runs[(runs["recipe"] != "default") & runs["split"].isin(default.index)]
    rows, random = [], np.random.default_rng(0)
    for (recipe, part), group in pd.concat(
        [others.assign(part=part) for part in ("validation", "test")]
    ).groupby(["recipe", "part"], sort=False):
        means, draws = [], []
        for row in group.itertuples():
            mine, other = answers(default[row.split], part), answers(row.folder, part)
            won = int((mine["right"] & ~other["right"]).sum())
            lost = int((other["right"] & ~mine["right"]).sum())
            difference = mine["loss"] - other["loss"]
            p = binomtest(won, won + lost).pvalue if won + lost else 1.0
            means.append(difference.mean())
            draws.append(bootstrap(difference.to_numpy(), random))
            ends = np.quantile(draws[-1], [0.025, 0.975])
            rows.append([recipe, row.split, part, won, lost, p, means[-1], *ends])
        if len(group) == 2:
            ends = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
            rows.append([recipe, "both", part, None, None, None, np.mean(means), *ends])
    columns = ["against", "split", "part", "only the default right", "only the other right"]
    columns += ["p", "log loss, default minus other", "from", "to"]
    table = pd.DataFrame(rows, columns=columns)
    return table.astype(dict.fromkeys(columns[3:5], "Int64"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinates")
    arguments = parser.parse_args()
    # of runs that are finished
    folders = [RESULTS, *sorted(path.parent for path in RESULTS.glob("runs/*/run.json"))]
    runs = pd.DataFrame(map(summary, folders)).assign(folder=folders)
    splits = runs.drop(columns="folder").sort_values(["split", "split_seed", "seed"])
    first = splits["recipe"].map({"default": 0, "short preset": 1}).fillna(2)
    save_table(splits.iloc[np.argsort(first, kind="stable")], RESULTS / "splits.csv")
    by_seed = [comparisons(group).assign(seed=seed) for seed, group in runs.groupby("seed")]
    save_table(pd.concat(by_seed), RESULTS / "comparisons.csv")
    save_table(confusions(runs), RESULTS / "elsewhere.csv")
    if arguments.coordinates:
        save_table(by_distance(arguments.coordinates), RESULTS / "distance.csv")
