"""Judge the runs as Training.ipynb does; make results folders of them."""
import sys, os, json
sys.path.insert(0, ".")
import numpy as np, pandas as pd, eurosat_utils as eu
from pathlib import Path
from sklearn.metrics import f1_score, log_loss
labels = np.load("gpu/in/labels.npy").astype(int)
tiles = eu.list_tiles(eu.fetch_eurosat("data"))
names = np.array(eu.CLASSES)
def answers(rows, p):
    t = tiles.loc[rows, ["file", "label"]].assign(predicted=names[p.argmax(1)])
    return t.join(pd.DataFrame(p, t.index, eu.CLASSES))
rows = []
for source, recipe in (("one", "default"), ("former", "former")):
    path = Path(f"gpu/out/{source}.npz")
    if not path.exists(): path = Path("gpu/out.npz")
    data = np.load(path)
    for run in sorted({k.rsplit("/", 1)[0] for k in data}):
        name = run.split(":")[0]
        parts = np.load(f"gpu/in/{name}.npz"); info = json.load(open(f"gpu/in/{name}.json"))
        val, test = parts["validation"], parts["test"]
        raw = data[run + "/validation"]
        T = eu.fit_temperature(raw, labels[val])
        pv = eu.apply_temperature(raw, T); pt = eu.apply_temperature(data[run + "/test"], T)
        right = pt.argmax(1) == labels[test]
        low, high = eu.wilson_interval(right.sum(), len(test))
        cal = {k: {"log_loss": log_loss(labels[test], p, labels=range(10)), "expected_calibration_error": eu.calibration_bins(p, labels[test])[0]} for k, p in (("before calibration", data[run+"/test"].astype(float)), ("after calibration", pt))}
        m = {"test_tiles": len(test), "accuracy": right.mean(), "accuracy_95_percent_interval": [low, high],
             "macro_f1": f1_score(labels[test], pt.argmax(1), average="macro"),
             "validation_accuracy": (pv.argmax(1) == labels[val]).mean(), "validation_log_loss": log_loss(labels[val], pv, labels=range(10)),
             "temperature": T, "fine_tuning_seconds": float(data[run+"/seconds"]), "calibration": cal}
        folder = Path(f"gpu/results/{recipe}-{name}"); folder.mkdir(parents=True, exist_ok=True)
        eu.save_table(answers(val, pv), folder/"validation_predictions.csv", decimals=6)
        eu.save_table(answers(test, pt), folder/"test_predictions.csv", decimals=6)
        eu.save_json(m, folder/"metrics.json")
        eu.save_json({"parameters": info["settings"], **info["inputs"], "metrics": m, "dtype": "float32", "processor": "NVIDIA H200, JAX"}, folder/"run.json")
        rows.append([recipe, name, m["validation_log_loss"], m["validation_accuracy"], m["accuracy"], low, high, m["macro_f1"], cal["after calibration"]["log_loss"], T, m["fine_tuning_seconds"]])
t = pd.DataFrame(rows, columns="recipe run val_loss val_acc acc low high f1 loss T s".split())
print(t.round(4).to_string())
