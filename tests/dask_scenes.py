"""Map many scenes with Dask: the same function, on the cores of one machine or on a cluster.

    pip install "dask[distributed]"
    python tests/dask_scenes.py FOLDER_WITH_SCENES FOLDER_FOR_MAPS

Scenes, model and maps must lie where every worker can reach them, and the workers need the packages
of requirements.txt.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from dask import bag
from dask.distributed import Client

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import eurosat_utils as eu  # noqa: E402


def map_scenes(paths, model_path, output, **options):
    """Run on a worker: map some scenes, each into a folder of its own; return their overviews."""
    import eurosat_utils as eu

    model = eu.open_model(model_path)  # once for all scenes of this part of the bag
    return [eu.map_images(model, path, output / path.stem, **options) for path in paths]


def map_folder(scenes, output, model_path, address=None, workers=2, **options):
    """Map the scenes of a folder; return the overview of all.

    Args:
        scenes: The folder; or as for `eurosat_utils.map_images`.
        output: Each scene's files go into a folder of its name in here.
        model_path: The saved model.
        address: Of a scheduler, as `tcp://10.0.0.1:8786`; None for workers on this machine.
        workers: Their number on this machine.
        options: As for `eurosat_utils.map_images`.
    """
    paths = [path.resolve() for path in eu.list_images(scenes)]
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    with Client(address, **({} if address else local)) as client:
        client.upload_file(str(REPOSITORY / "eurosat_utils.py"))
        parts = bag.from_sequence(paths, partition_size=1 + len(paths) // 100)
        parts = parts.map_partitions(map_scenes, model_path, output.resolve(), **options)
        return pd.concat(parts.compute(), ignore_index=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", type=Path)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--levels", type=float, nargs=2, help="as in python eurosat_utils.py -h")
    parser.add_argument("--address", help="of a scheduler; without it, two workers on this machine")
    arguments = parser.parse_args()
    model_path = REPOSITORY / "models/eurosat_resnet50.keras"
    colours = np.load(REPOSITORY / "results/training_colours.npy")
    options = {"training_colours": colours, "levels": arguments.levels}
    overview = map_folder(
        arguments.scenes, arguments.maps, model_path, arguments.address, **options
    )
    eu.save_table(overview, arguments.maps / "overview.csv")
    print(overview.to_string())
