"""Measure what fewer bits a weight cost on the validation part, and how large the file becomes.

    python tests/benchmarks/model_bits.py models/eurosat_resnet50.keras DATA_DIR

Writes results/model_bits.csv. Criterion: 8 bits are taken if the file then has at most 30 MB, the
accuracy differs by at most 0.05 points and the log loss by at most 1 %.
"""

import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "results"
sys.path.insert(0, str(RESULTS.parent))

import keras  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from sklearn.metrics import log_loss  # noqa: E402

import eurosat_utils as eu  # noqa: E402


def round_kernel(kernel, bits):
    """Round to multiples of a step: for each output channel the smallest power of two that fits."""
    largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    step = np.exp2(np.ceil(np.log2(np.maximum(largest, 1e-30) / (2 ** (bits - 1) - 1))))
    return np.round(kernel / step) * step


if __name__ == "__main__":
    model = keras.saving.load_model(sys.argv[1])
    folder = eu.fetch_eurosat(sys.argv[2])
    split = eu.split_tiles(eu.list_tiles(folder), 0)
    validation = split[split["split"] == "validation"]
    tiles = eu.load_tiles(folder, validation["file"])
    labels = validation["label"].map(eu.CLASSES.index).to_numpy()
    weights, rows = model.get_weights(), []
    for bits in (16, 10, 9, 8):
        if bits < 16:  # as it is: 16
            model.set_weights([round_kernel(w, bits) if w.ndim > 1 else w for w in weights])
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "model.keras")
            eu.save_model(model, path, tiles[:64])
            megabytes = path.stat().st_size / 1e6
        probabilities = model.predict(tiles, batch_size=64, verbose=0).astype("float64")
        right = (probabilities.argmax(axis=1) == labels).mean()
        loss = log_loss(labels, probabilities)
        rows.append({"bits": bits, "megabytes": round(megabytes, 1)})
        rows[-1] |= {"validation_accuracy": round(right, 4), "validation_log_loss": round(loss, 5)}
        print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(RESULTS / "model_bits.csv", index=False, lineterminator="\n")
