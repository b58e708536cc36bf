"""Classify many scenes with Dask: the same function, on the cores of one machine or on a cluster.

    python tests/dask_scenes.py models/eurosat_resnet50.keras FOLDER_WITH_SCENES FOLDER_FOR_TABLES

Model and scenes must lie where every worker can read them, and the workers need the packages of requirements.txt.
"""

import argparse
from pathlib import Path

from dask import bag
from dask.distributed import Client

REPOSITORY = Path(__file__).resolve().parent.parent


def classify_scenes(paths, model_path, **options):
    """Run on a worker: return the name and the table of each scene, or in its place why there is none."""
    import keras

    from eurosat_utils import classify_image

    model = keras.saving.load_model(model_path)  # once for all scenes of this part of the bag
    results = []
    for path in paths:
        try:
            results.append((path.name, classify_image(model, path, **options)))
        except ValueError as error:  # one bad scene must not stop the others
            results.append((path.name, str(error)))
    return results


def classify_folder(model_path, folder, address=None, workers=2, **options):
    """Return the table of each TIFF scene of a folder, or the reason why it could not be read, by name.

    Args:
        model_path: The saved model.
        folder: Holds the scenes.
        address: That of a scheduler, such as `tcp://10.0.0.1:8786`; None for workers on this machine.
        workers: Their number on this machine.
        options: As for `classify_image`.
    """
    scenes = sorted(path for path in Path(folder).resolve().iterdir() if path.suffix.lower() in (".tif", ".tiff"))
    if not scenes:
        raise ValueError(f"{folder} holds no TIFF scene.")
    local = {} if address else {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with Client(address, **local) as client:
        client.upload_file(str(REPOSITORY / "eurosat_utils.py"))
        parts = bag.from_sequence(scenes, partition_size=1 + len(scenes) // 100)
        return dict(parts.map_partitions(classify_scenes, str(Path(model_path).resolve()), **options).compute())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "scenes", "tables"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--levels", type=int, nargs=2, help="black and white of 16-bit scenes")
    parser.add_argument("--address", help="of a scheduler; without it, two workers on this machine")
    arguments = parser.parse_args()
    arguments.tables.mkdir(parents=True, exist_ok=True)
    options = {"levels": arguments.levels} if arguments.levels else {}
    tables = classify_folder(arguments.model, arguments.scenes, arguments.address, **options)
    for name, table in tables.items():
        if isinstance(table, str):
            print(f"Not classified: {table}")
        else:
            table.to_csv(arguments.tables / f"{name}_tiles.csv", index=False)
            print(f"{name}: {len(table)} tiles")
