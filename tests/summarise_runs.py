"""Add complete runs of Training.ipynb to the tables of our runs.

    python tests/summarise_runs.py default RESULTS_DIR [RESULTS_DIR ...]

Each folder becomes a row of results/splits.csv, of the recipe that is named first.
"""

import json
import sys
from pathlib import Path

import pandas as pd

REPOSITORY = Path(__file__).resolve().parents[1]
TABLE = REPOSITORY / "results" / "splits.csv"


def row_of(recipe, folder):
    """Return what splits.csv says of a run."""
    record = json.loads((folder / "run.json").read_text("utf-8"))
    settings, metrics = record["parameters"], record["metrics"]
    low, high = metrics["accuracy_95_percent_interval"]
    is_random = settings["SPLIT"] == "random"
    return {
        "recipe": recipe,
        "split": Path(settings["SPLIT"]).stem,
        "split_seed": settings["SPLIT_SEED"] if is_random else None,
        "seed": settings["SEED"],
        "validation_accuracy": metrics["validation_accuracy"],
        "validation_log_loss": metrics["validation_log_loss"],
        "accuracy": metrics["accuracy"],
        "from": low,
        "to": high,
        "macro_f1": metrics["macro_f1"],
        "log_loss": metrics["calibration"]["after calibration"]["log_loss"],
        "calibration_error": metrics["calibration"]["after calibration"][
            "expected_calibration_error"
        ],
        "temperature": metrics["temperature"],
        "minutes": metrics["fine_tuning_seconds"] / 60,
        "arithmetic": record["dtype"],
        "processor": record["processor"],
    }


if __name__ == "__main__":
    rows = pd.DataFrame([row_of(sys.argv[1], Path(folder)) for folder in sys.argv[2:]])
    table = pd.concat([pd.read_csv(TABLE, dtype={"split_seed": "Int64"}), rows])
    table = table.drop_duplicates(["recipe", "split", "split_seed", "seed"], keep="last")
    table = table.astype({"split_seed": "Int64"})
    table = table.sort_values(["recipe", "split", "split_seed", "seed"], ascending=True)
    table.to_csv(TABLE, index=False, float_format="%.4f")
    print(table.to_string())
