"""Write splits.csv, elsewhere.csv and distance.csv from the records of runs on several splits.

    python tests/benchmarks/summarise_splits.py RUN_FOLDER ... [--coordinates CSV]

Each RUN_FOLDER is a RESULTS_DIR of Training.ipynb. The coordinates (columns tile, lat, lon) come
from a public copy: github.com/Vezarachan/TUM_Course_SVA_TrustGeoAI.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.neighbors import BallTree

RESULTS = Path(__file__).resolve().parents[2] / "results"
sys.path.insert(0, str(RESULTS.parent))

from eurosat_utils import CLASSES, save_table, wilson_interval  # noqa: E402

NAMES = {(96, 96, 96, 128, 160): "default", (96, 96, 96, 128): "short preset"}


def summary(folder):
    """Return the row of a run."""
    run = json.loads(Path(folder, "run.json").read_text("utf-8"))
    metrics, settings = run["metrics"], run["parameters"]
    low, high = metrics["accuracy_95_percent_interval"]
    after = metrics["calibration"]["after calibration"]
    sizes = tuple(settings["IMAGE_SIZES"])
    by_size = ", ".join(f"{sizes.count(size)}x{size}" for size in dict.fromkeys(sizes))
    return {
        "recipe": NAMES.get(sizes, by_size),
        "split": settings["SPLIT"],
        "split_seed": settings["SPLIT_SEED"] if settings["SPLIT"] == "random" else "",
        "validation_accuracy": metrics["validation_accuracy"],
        "accuracy": metrics["accuracy"],
        "from": low,
        "to": high,
        "macro_f1": metrics["macro_f1"],
        "log_loss": after["log_loss"],
        "calibration_error": after["expected_calibration_error"],
        "pflop": run["pflop"],
        "minutes": run["seconds"]["fine-tuning"] / 60,
        "arithmetic": run["dtype"],
        "processor": run["processor"],
    }


def by_distance(folder, coordinates):
    """Return the accuracy of test tiles by the distance to the nearest training tile."""
    places = np.radians(pd.read_csv(coordinates).set_index("tile")[["lat", "lon"]])
    split = pd.read_csv(Path(folder, "split.csv"))
    test = pd.read_csv(Path(folder, "test_predictions.csv"))
    train = split["file"][split["split"] == "train"].map(lambda file: Path(file).stem)
    tree = BallTree(places.loc[train].to_numpy(), metric="haversine")
    nearest, _ = tree.query(places.loc[test["file"].map(lambda file: Path(file).stem)].to_numpy())
    kilometres = pd.cut(6371 * nearest[:, 0], [0, 1, 5, np.inf], include_lowest=True)
    right = (test["label"] == test["predicted"]).groupby(kilometres, observed=True)
    table = right.agg(["size", "sum"]).set_axis(["tiles", "right"], axis=1)
    table.index = ["under 1 km", "1 to 5 km", "over 5 km"]
    table["accuracy"] = table["right"] / table["tiles"]
    ends = [wilson_interval(*row) for row in table[["right", "tiles"]].to_numpy()]
    table[["from", "to"]] = ends
    return table.drop(columns="right").reset_index(names="nearest training tile")


def confusions():
    """Return how many test tiles of each class got which answer, here and there."""
    places = {"regions it knows": RESULTS, "unseen countries": RESULTS / "longitude"}
    columns = {}
    for place, folder in places.items():
        test = pd.read_csv(folder / "test_predictions.csv")
        matrix = pd.crosstab(test["label"], test["predicted"])
        columns[place] = matrix.reindex(index=CLASSES, columns=CLASSES, fill_value=0).stack()
    return pd.DataFrame(columns).reset_index(names=["label", "predicted"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--coordinates")
    arguments = parser.parse_args()
    save_table(pd.DataFrame(map(summary, arguments.folders)), RESULTS / "splits.csv")
    save_table(confusions(), RESULTS / "elsewhere.csv")
    if arguments.coordinates:
        save_table(by_distance(RESULTS, arguments.coordinates), RESULTS / "distance.csv")
