"""Classify many scenes with Dask: the same function, on the cores of one machine or on a cluster.

    python tests/dask_scenes.py models/eurosat_resnet50.keras FOLDER_WITH_SCENES FOLDER_FOR_TABLES

Model and scenes must lie where every worker can read them, and the workers need the packages of
requirements.txt.
"""

import argparse
import sys
from pathlib import Path

from dask import bag
from dask.distributed import Client

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from eurosat_utils import TILE_SIZE, check_settings  # noqa: E402


def classify_scenes(paths, model_path, **options):
    """Run on a worker: return the name of each scene and its table, or why there is none."""
    from eurosat_utils import classify_image, open_model, shown_name

    model = open_model(model_path)  # once for all scenes of this part of the bag
    results = []
    for path in paths:
        try:
            results.append((shown_name(path.name), classify_image(model, path, **options)))
        except (ValueError, MemoryError) as error:  # one bad scene must not stop the others
            results.append((shown_name(path.name), str(error)))
    return results


def classify_folder(model_path, folder, address=None, workers=2, **options):
    """Return the table of each scene of a folder, or why it could not be read, by name.

    Args:
        model_path: The saved model.
        folder: Holds the scenes.
        address: Of a scheduler, as `tcp://10.0.0.1:8786`; None for workers on this machine.
        workers: Their number on this machine.
        options: `stride` and `levels`, as for `classify_image`.

    Raises:
        ValueError: There is no scene, or an option is impossible.
    """
    check_settings(stride=options.get("stride", TILE_SIZE), levels=options.get("levels"))
    paths = sorted(Path(folder).resolve().iterdir())
    scenes = [path for path in paths if path.suffix.lower() in (".tif", ".tiff", ".jp2")]
    if not scenes:
        raise ValueError(f"{folder} holds no TIFF or JPEG 2000 scene.")
    local = (
        {}
        if address
        else {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    )
    with Client(address, **local) as client:
        client.upload_file(str(REPOSITORY / "eurosat_utils.py"))
        parts = bag.from_sequence(scenes, partition_size=1 + len(scenes) // 100)
        model_path = str(Path(model_path).resolve())
        return dict(parts.map_partitions(classify_scenes, model_path, **options).compute())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "scenes", "tables"):
        parser.add_argument(name, type=Path)
    parser.add_argument(
        "--levels", type=float, nargs=2, help="black and white of scenes not of 8 bits"
    )
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
