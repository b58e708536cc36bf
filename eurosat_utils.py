"""Load, split and judge EuroSAT (RGB), and classify images of any size: what both notebooks share.

The functions follow the data: fetch, list, split, train, save, plot, classify. From a shell,

    python eurosat_utils.py my-images

makes land-cover maps of your own images. Importing makes Keras run on TensorFlow, on the CPU and
in float32, and keeps TensorFlow's start-up notes away.
"""

import argparse
import hashlib
import itertools
import json
import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rasterio
import rasterio.transform
import rasterio.warp
import seaborn as sns
from IPython import display, get_ipython
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageOps
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import MemoryFile
from rasterio.windows import Window
from scipy.optimize import minimize_scalar
from scipy.spatial import cKDTree
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

# Start-up notes would fill every notebook; TensorFlow writes its own past Python and log levels.
warnings.filterwarnings("ignore", "IProgress not found")  # tqdm draws a bar without ipywidgets
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # else off without AVX-512; twice as fast
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # these notebooks are for the CPU
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user's keras.json says
_stderr = os.dup(2)
with Path(os.devnull).open("w") as _null:
    os.dup2(_null.fileno(), 2)
    try:
        import keras
        import pooch
        import tensorflow as tf
    finally:
        os.dup2(_stderr, 2)
        os.close(_stderr)
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")
keras.config.set_dtype_policy("float32")
tf.get_logger().setLevel("ERROR")  # no notes on tracing, either
pooch.get_logger().setLevel("WARNING")

CLASS_COLOURS = {  # as in nature where possible; those that look alike to some differ in brightness
    "AnnualCrop": "#f0e442",
    "Forest": "#00662d",
    "HerbaceousVegetation": "#a6d96a",
    "Highway": "#4d4d4d",
    "Industrial": "#9e4fb5",
    "Pasture": "#1fb58f",
    "PermanentCrop": "#9c5a1d",
    "Residential": "#e6352b",
    "River": "#7fd3f7",
    "SeaLake": "#10439f",
}
CLASSES = tuple(CLASS_COLOURS)  # in this order the model answers
NO_DATA = "no data"  # instead of a class
TILE_SIZE = 64  # pixels; one pixel is 10 m on the ground
BATCH_SIZE = 64  # tiles that are classified in one step
PARTS = ("train", "validation", "test")
DATA_OPTIONS = tf.data.Options()
DATA_OPTIONS.autotune.enabled = False  # with it, an epoch can end a minute late

# Helber et al. 2019, "EuroSAT", IEEE JSTARS 12(7), doi:10.1109/JSTARS.2019.2918242
ARCHIVES = {  # file: (URL, checksum); the same tiles, packed differently
    "EuroSAT_RGB.zip": (
        "https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip",
        "sha256:b4f5b234ecb7d7ff9c6cddb046543b4717c53fd6e9815be6c0e80cc614f51b90",
    ),
    "EuroSAT.zip": (
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
        "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        "sha256:8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
    ),
}
LONGITUDE_URL = (
    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
    "1ce6f1bfb56db63fd91b6ecc466ea67f2509774c/"
)
LONGITUDE_LISTS = {  # torchgeo's EuroSATSpatial, as PARTS: file: SHA-256; a tile's name in a line
    "eurosat-spatial-train.txt": "2db7d455afb8dcbca898ea19a00f1f90c091734efdbba89e22aaf24056da243f",
    "eurosat-spatial-val.txt": "6c758477604b7057a0fd990d7f6327b63b99a6725aac11a6a9d0174a7fdd8f0b",
    "eurosat-spatial-test.txt": "de22dec83d350cac3b3e4ca8e285cb6733c81ab94bf5bcf9213a567993402452",
}
IMAGENET_WEIGHTS = (  # of ResNet50 in keras.applications: file, URL, checksum
    "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
    "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "md5:4d473c1dd8becc155b73f8504c6f6626",
)
TIMEOUT = 60  # seconds without an answer before a download is given up

LEVELS_16_BIT = (0, 2750)  # what became black and white in EuroSAT, in 1/10,000 of the reflectance
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".jp2")
DRIVERS = ("JPEG", "PNG", "GTiff", "JP2OpenJPEG")  # of GDAL; others may refer to further files
GDAL_CACHE = 256 * 2**20  # bytes; the default is 5% of the machine's memory
MAX_PIXELS = 400_000_000  # of an image: three Sentinel-2 scenes, 1.2 GB in memory
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


# ---------------------------------------------------------------- fetch, load and split


def fetch_eurosat(data_dir: str | Path = "data") -> Path:
    """Find EuroSAT in a folder; unpack or download it if it is not there.

    Args:
        data_dir: Holds the ten class folders (perhaps in `EuroSAT_RGB/` or `2750/`), an archive
            that is named as in `ARCHIVES`, or nothing yet.

    Returns:
        The folder that contains the class folders.

    Raises:
        ValueError: An archive that is present is damaged or does not hold EuroSAT.
        FileNotFoundError: Nothing is present and no download worked.
    """
    data_dir = Path(data_dir).expanduser()
    for folder in (data_dir / "EuroSAT_RGB", data_dir / "2750", data_dir):
        if any((folder / name).is_dir() for name in CLASSES):
            return folder
    for name in ARCHIVES:
        if (data_dir / name).is_file():
            return _unpack(data_dir / name)
    failures = []
    for name, (url, checksum) in ARCHIVES.items():
        try:
            return _unpack(_fetch(data_dir, name, url, checksum))
        except FileNotFoundError as error:
            failures.append(str(error))
    failures.append("To see both notebooks at work on drawn tiles instead: python tests/demo.py")
    raise FileNotFoundError("\n".join(failures))


def fetch_weights(weights: str | Path, data_dir: str | Path = "data") -> Path:
    """Return the file of weights to start from; `"imagenet"` is fetched into `data_dir`.

    Raises:
        ValueError: A file of that name is there and is not the published one.
        FileNotFoundError: The download did not work.
    """
    if weights == "imagenet":
        return _fetch(Path(data_dir).expanduser(), *IMAGENET_WEIGHTS)
    return Path(weights).expanduser()


def _fetch(folder: Path, name: str, url: str, checksum: str) -> Path:
    """Return a file of a folder, downloaded if it is not there, its checksum verified."""
    path, (algorithm, digest) = folder / name, checksum.split(":")
    if path.exists() and pooch.file_hash(path, algorithm) != digest:
        raise ValueError(
            f"{path} is not the published file. Move it away: it will be downloaded again."
        )
    headers = {"User-Agent": "eurosat-notebooks/1.0"}  # Zenodo turns Python's own away
    downloader = pooch.HTTPDownloader(progressbar=True, headers=headers, timeout=TIMEOUT)
    try:
        return Path(pooch.retrieve(url, checksum, name, folder, downloader=downloader))
    except (OSError, ValueError) as error:  # the network, the disk; a wrong checksum
        raise FileNotFoundError(
            f"{name} is not in {folder.absolute()} and could not be downloaded ({error}). Download "
            f"{url} with a browser, put it there, and run this cell again."
        ) from error


def _unpack(archive: Path) -> Path:
    """Unpack to `EuroSAT_RGB/` beside the archive; that folder appears when it is complete."""
    try:
        with (
            zipfile.ZipFile(archive) as content,
            tempfile.TemporaryDirectory(dir=archive.parent, ignore_cleanup_errors=True) as folder,
        ):
            unpacked = Path(folder, "unpacked")  # unlike `folder`, others may read it
            content.extractall(unpacked)
            for root in (unpacked, *unpacked.iterdir()):
                if all((root / name).is_dir() for name in CLASSES):
                    list_tiles(root)
                    return root.rename(archive.with_name("EuroSAT_RGB"))
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise ValueError(f"{archive}: {error}. Delete it and run this cell again.") from error
    raise ValueError(f"{archive} does not hold the folders {', '.join(CLASSES)}. Delete it.")


def list_tiles(folder: str | Path) -> pd.DataFrame:
    """List all tiles in a fixed order, whatever order the operating system lists files in.

    Args:
        folder: Holds the ten class folders with JPEG tiles.

    Returns:
        One row a tile, sorted by file: `file` (`Class/Class_n.jpg`, below `folder`) and `label`.

    Raises:
        ValueError: Class folders are missing or empty, or there is something else.
    """
    folder, rows = Path(folder), []
    others = [path for path in folder.iterdir() if path.is_dir() and path.name not in CLASSES]
    problems = [f"{path}: not a class" for path in sorted(others) if path.name[0] not in "._"]
    for label in CLASSES:
        paths = sorted((folder / label).glob("[!.]*"))
        problems += [f"{folder / label}: missing or empty"] if not paths else []
        for path in paths:
            if path.suffix.lower() in (".jpg", ".jpeg"):
                rows.append((f"{label}/{path.name}", label))
            else:
                problems.append(f"{path}: not a JPEG tile")
    _raise_problems(problems)
    return pd.DataFrame(rows, columns=["file", "label"])


def load_tiles(folder: str | Path, files: Iterable[str]) -> np.ndarray:
    """Decode tiles into memory.

    Args:
        folder: Holds the class folders.
        files: Paths relative to `folder`.

    Returns:
        `uint8` `(len(files), 64, 64, 3)`, RGB, in the order of `files`.

    Raises:
        ValueError: Files are missing, unreadable, truncated, or not 64x64 RGB; names them.
    """
    paths = [Path(folder, file) for file in files]
    tiles = np.empty((len(paths), TILE_SIZE, TILE_SIZE, 3), np.uint8)
    problems = []
    for index, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                if image.size == (TILE_SIZE, TILE_SIZE) and image.mode == "RGB":
                    tiles[index] = np.asarray(image)
                else:
                    problems.append(f"{path}: {image.size} {image.mode} instead of 64x64 RGB")
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken files
            problems.append(f"{path}: {error}")
    _raise_problems(problems)
    return tiles


def _raise_problems(problems: list[str]) -> None:
    if problems:
        more = [f"... and {len(problems) - 10:,} more"] if len(problems) > 10 else []
        lines = [f"{len(problems):,} problem(s) in the data set:", *problems[:10], *more]
        raise ValueError("\n  ".join(lines) + "\nRepair this, or use a fresh archive.")


def split_tiles(
    tiles: pd.DataFrame, split: str | Path = "random", seed: int = 0, data_dir: str | Path = "data"
) -> pd.DataFrame:
    """Assign tiles to training, validation and test.

    Args:
        tiles: Columns `file` and `label`, as from `list_tiles`.
        split: `"random"`: 60/20/20, stratified by class. `"longitude"`: the published split of
            torchgeo's `EuroSATSpatial`; no test tile is nearer than 438 km to a training tile.
            Otherwise a CSV file with the columns `file` and `split` (`train`, `validation` or
            `test`); tiles that it does not name are left out.
        seed: Of the random split; the same seed and files give the same split.
        data_dir: Where the lists of the split by longitude are, or are downloaded to.

    Returns:
        The rows of `tiles`, sorted by file, index kept, with a column `split`.

    Raises:
        FileNotFoundError: `split` is not a file; or a list is missing and cannot be downloaded.
        ValueError: The split and the tiles do not suit each other; says why.
    """
    tiles = tiles.sort_values("file")
    if split == "random":
        parts = _split_at_random(tiles, seed)
    elif split == "longitude":
        parts = _split_by_longitude(Path(data_dir).expanduser())
        if unknown := sorted(set(tiles["file"]) - set(parts.index)):
            raise ValueError(
                f"{len(unknown):,} tiles are in no list of the split by longitude, such as "
                f"{unknown[0]}. It is for EuroSAT as published; split others at random."
            )
    else:
        columns = ["file", "split"]
        parts = pd.read_csv(Path(split).expanduser(), usecols=columns).set_index("file")["split"]
        unknown = sorted(set(parts.index) - set(tiles["file"]))
        twice = sorted(parts.index[parts.index.duplicated()])
        if unknown or twice or not set(parts) <= set(PARTS):
            raise ValueError(
                f"{split}: {len(unknown):,} of its tiles are not there {unknown[:3]}, {len(twice)} "
                f"are named twice {twice[:3]}, its parts are {sorted(map(str, set(parts)))}. Give "
                f"tiles of this data set, each once, as {', '.join(PARTS)}."
            )
    tiles = tiles.assign(split=tiles["file"].map(parts)).dropna(subset="split")
    present = set(zip(tiles["label"], tiles["split"], strict=True))
    pairs = itertools.product(CLASSES, PARTS)
    if empty := [f"no {label} in {part}" for label, part in pairs if (label, part) not in present]:
        raise ValueError(f"SPLIT = {str(split)!r} leaves {', '.join(empty)}. Use more tiles.")
    return tiles


def _split_at_random(tiles: pd.DataFrame, seed: int) -> pd.Series:
    """Return the part of each tile, by file."""
    tiles = tiles.set_index("file")["label"]
    train, rest = train_test_split(tiles, train_size=0.6, stratify=tiles, random_state=seed)
    validation, test = train_test_split(rest, test_size=0.5, stratify=rest, random_state=seed)
    parts = pd.concat([train, validation, test], keys=PARTS, names=["split", "file"])
    return parts.reset_index("split")["split"]


def _split_by_longitude(folder: Path) -> pd.Series:
    """Return the part of each tile, by file."""
    parts = {}
    for part, (name, digest) in zip(PARTS, LONGITUDE_LISTS.items(), strict=True):
        path = _fetch(folder, name, LONGITUDE_URL + name, f"sha256:{digest}")
        for tile in path.read_text("utf-8").split():
            parts[f"{tile.rsplit('_', 1)[0]}/{tile}"] = part
    return pd.Series(parts)


def split_digest(split: pd.DataFrame) -> str:
    """Return the SHA-256 of a split's list, which is also that of the file `split.csv`."""
    text = split[["file", "label", "split"]].to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()


def check_pixels(pixels: np.ndarray, dimensions: int, name: str = "pixels") -> None:
    """Raise a ValueError if an array is not `uint8`: an image (3 dimensions) or tiles (4)."""
    kind, shape = getattr(pixels, "dtype", type(pixels).__name__), np.shape(pixels)
    right_size = dimensions == 3 or shape[1:3] == (TILE_SIZE, TILE_SIZE)
    if kind != np.uint8 or len(shape) != dimensions or shape[-1] != 3 or not right_size:
        wanted = "(n, 64, 64, 3)" if dimensions == 4 else "(height, width, 3)"
        raise ValueError(
            f"{name}: {kind} {shape} instead of uint8 {wanted}, RGB. read_image makes such pixels "
            "of a file, with levels=(black, white) for other numbers."
        )


# ---------------------------------------------------------------- network and training


def load_backbone(path: str | Path, dtype: str = "float32") -> keras.Model:
    """Return ResNet50 without its last layer, batch normalisation folded.

    Args:
        path: A file of weights of `keras.applications.ResNet50` without its top, or a model that
            Training.ipynb saved.
        dtype: What its layers compute in: `"float32"`, or `"bfloat16"`, the weights in float32.

    Returns:
        Prepared images of any size in, 2,048 features out.

    Raises:
        ValueError: The file cannot be read or belongs to another network.
    """
    is_model = Path(path).suffix == ".keras"
    keras.config.set_dtype_policy({"float32": "float32", "bfloat16": "mixed_bfloat16"}[dtype])
    try:
        with warnings.catch_warnings():  # a wrong file would be warned of a hundred times
            warnings.filterwarnings("error", "Skipping nested container")
            network = keras.applications.ResNet50(
                include_top=False,
                weights=None if is_model else path,
                input_shape=(None, None, 3),
                pooling="avg",
            )
        network = fold_normalisation(network)
        if is_model:
            *weights, _, _ = keras.saving.load_model(path).get_weights()  # without its head
            network.set_weights(weights)
    except Exception as error:  # no HDF5, damaged, another network: Keras raises many kinds
        raise ValueError(
            f"WEIGHTS: {path} cannot be loaded into a ResNet50 without its top ({error})."
        ) from error
    finally:
        keras.config.set_dtype_policy("float32")
    return network


def fold_normalisation(network: keras.Model) -> keras.Model:
    """Return a network with each batch normalisation computed into the convolution before it.

    With its averages kept as they are, a batch normalisation only multiplies and adds. Folded,
    the answers are the same, and training and classifying are faster (`results/speed.csv`).

    Args:
        network: Layers named as in `keras.applications.ResNet50`: `..._bn` follows `..._conv`.
    """

    def call(layer, *inputs, **options):  # leave batch normalisations out
        is_normalisation = isinstance(layer, keras.layers.BatchNormalization)
        return inputs[0] if is_normalisation else layer(*inputs, **options)

    folded = keras.models.clone_model(network, call_function=call)
    for layer in folded.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = network.get_layer(layer.name).get_weights()
            normalisation = network.get_layer(layer.name.replace("_conv", "_bn"))
            gamma, beta, mean, variance = normalisation.get_weights()
            scale = gamma / np.sqrt(variance + normalisation.epsilon)
            layer.set_weights([kernel * scale, (bias - mean) * scale + beta])
    return folded


def batches(*arrays: np.ndarray, size: int = BATCH_SIZE) -> tf.data.Dataset:
    """Return arrays of equal length as batches, in order."""
    data = tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0])
    return data.batch(size).with_options(DATA_OPTIONS)


class Progress(keras.callbacks.Callback):
    """One line that moves while Keras works: share done, tiles a second, time left.

    Args:
        what: Begins the line.
        tiles: How many one epoch, or one prediction, takes.
        epochs: How many there are.

    Attributes:
        seconds: How long the last epoch took, validation included.
    """

    def __init__(self, what: str, tiles: int, epochs: int = 1):
        super().__init__()
        self.what, self.tiles, self.epochs, self._line = what, tiles, epochs, None

    def on_epoch_begin(self, epoch, logs=None) -> None:  # noqa: D102
        self._name = f"{self.what} {epoch + 1} of {self.epochs}" if self.epochs > 1 else self.what
        self._epochs_left = self.epochs - epoch - 1
        self._start = time.perf_counter()
        self._show("starting")

    def on_train_batch_end(self, batch, logs=None) -> None:  # noqa: D102
        now, steps = time.perf_counter(), self.params["steps"]
        if batch == 0:  # the first step includes compiling
            self._warm = self._shown = now
        elif now - self._shown > 0.5:
            self._shown = now
            seconds = (now - self._warm) / batch  # a step
            left = minutes(seconds * (steps * (1 + self._epochs_left) - batch - 1))
            speed = f"{self.tiles / steps / seconds:.0f} tiles/s"
            in_all = " in all" if self.epochs > 1 else ""
            self._show(f"{(batch + 1) / steps:.0%}, {speed}, {left} left{in_all}")

    def on_test_begin(self, logs=None) -> None:  # noqa: D102
        self._show("validation")

    def on_epoch_end(self, epoch, logs=None) -> None:  # noqa: D102
        self.on_predict_end()
        right, of_validation = logs["accuracy"], logs["val_accuracy"]
        print(f"{self._name}: accuracy {right:.2%}, on validation {of_validation:.2%}")

    def on_predict_begin(self, logs=None) -> None:  # noqa: D102
        self.on_epoch_begin(0)

    on_predict_batch_end = on_train_batch_end

    def on_predict_end(self, logs=None) -> None:  # noqa: D102
        self.seconds = time.perf_counter() - self._start
        self._show(f"{self.tiles:,} tiles in {minutes(self.seconds)}", end="\n")

    def _show(self, text: str, end: str = "") -> None:
        line = f"{self._name}: {text}"
        if get_ipython() is None:
            print(f"\r{line:<79}", end=end, file=sys.stderr, flush=True)
        elif self._line is None:
            self._line = display.display({"text/plain": line}, raw=True, display_id=True)
        else:
            self._line.update({"text/plain": line}, raw=True)


def minutes(seconds: float) -> str:
    """Return a duration in words, such as `40 s` or `3.5 min`."""
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{seconds / 60:.1f} min"


def predict(model: keras.Model, tiles: np.ndarray, what: str) -> np.ndarray:
    """Return what a model answers to many tiles, and show how far it is.

    Args:
        model: Takes `uint8` tiles `(n, 64, 64, 3)`.
        tiles: All of them.
        what: Begins the line that shows it.

    Returns:
        The answers, such as `float32` probabilities `(n, 10)`.

    Raises:
        ValueError: The tiles are not `uint8` `(n, 64, 64, 3)`.
    """
    check_pixels(tiles, 4, what)
    return model.predict(batches(tiles), verbose=0, callbacks=[Progress(what, len(tiles))])


class ChangedSettings(RuntimeError):
    """Settings were changed, or a cell was left out, since the run began."""


class Run:
    """The settings of a run of Training.ipynb, and the backup that lets it go on when interrupted.

    The backup is a folder beside the model. It holds one folder for the last finished epoch,
    `epoch-N` (N is 0 when only the new last layer has learned), that appears when it is complete.

    Args:
        namespace: The notebook's `globals()`; names in capitals are settings.

    Attributes:
        settings: By name, as they were when the run began.
        model_path: Where the model is to be saved.
        results: The folder for tables and figures.
        history: A dictionary for each finished epoch of head and network.
        resumed: Whether a backup was found.

    Raises:
        ValueError: `MODEL_PATH` does not end in `.keras`.
        OSError: A folder cannot be written to, or there is too little space.
    """

    def __init__(self, namespace: Mapping):
        self._namespace = namespace
        self.settings = self._settings_now()
        self.model_path = Path(namespace["MODEL_PATH"]).expanduser()
        self.results = Path(namespace["RESULTS_DIR"]).expanduser()
        self.history, self.resumed, self._inputs = [], False, None
        self._backup = self.model_path.with_suffix(".backup")
        if self.model_path.suffix != ".keras":
            raise ValueError(f"MODEL_PATH must end in .keras, not {self.model_path}.")
        for folder in (self.model_path.parent, self.results):  # found out now, not after training
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            if shutil.disk_usage(folder).free < 1.5e9:
                raise OSError(f"Less than 1.5 GB are free where {folder} is.")
        if get_ipython() is not None:  # one sentence instead of a long traceback
            get_ipython().set_custom_exc((KeyboardInterrupt, ChangedSettings), _say_why_it_stopped)

    def _settings_now(self) -> dict:
        settings = {name: self._namespace[name] for name in self._namespace if name.isupper()}
        return json.loads(json.dumps(settings, default=str))  # a copy; paths as text

    def check(self) -> None:
        """Raise ChangedSettings if a setting changed, or if `open_backup` was left out."""
        now = self._settings_now()
        changed = [key for key in self.settings if now.get(key) != self.settings[key]]
        if changed or self._inputs is None:
            why = f"{', '.join(changed)} changed" if changed else "A cell was left out"
            raise ChangedSettings(
                f"{why}. Select the Settings cell and choose Run > Run Selected Cell and All Below."
            )

    @property
    def finished(self) -> int:
        """Epochs of fine-tuning that are finished."""
        return _count_fine_tuned(self.history)

    def open_backup(self, **inputs) -> None:
        """Find the backup of an interrupted run; move one with other settings aside.

        Args:
            inputs: What else must be equal, such as a checksum of the split.
        """
        self._inputs, self.history, self.resumed = json.loads(json.dumps(inputs)), [], False
        self.check()
        if self._saved() is None:
            return
        state = json.loads((self._saved() / "state.json").read_text("utf-8"))
        present = self.settings | self._inputs
        if not (changed := [key for key in present if state["run"].get(key) != present[key]]):
            self.history, self.resumed = state["history"], True
            print(f"An interrupted run was found: it goes on after {self.finished} epochs.")
            return
        aside = self._backup.with_suffix(".old-backup")
        shutil.rmtree(aside, ignore_errors=True)
        self._backup.rename(aside)
        print(f"An interrupted run had other {', '.join(changed)}; its backup is now {aside}.")

    def _saved(self) -> Path | None:
        """Return the folder of the last finished epoch."""
        folders = self._backup.glob("epoch-*")
        return max(folders, key=lambda folder: int(folder.name[6:]), default=None)

    def save_backup(self, network: keras.Model, rows: Sequence[dict]) -> None:
        """Add epochs to the history and save it, the weights and the optimizer.

        Raises:
            OSError: The disk is full. The backup of the epoch before is still there.
        """
        self.check()
        history, old = [*self.history, *rows], self._saved()
        temporary = self._backup / "unfinished"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        state = {"run": self.settings | self._inputs, "history": history}
        (temporary / "state.json").write_text(json.dumps(state, indent=2), "utf-8")
        network.save_weights(temporary / "network.weights.h5")  # the optimizer's, too
        temporary.rename(self._backup / f"epoch-{_count_fine_tuned(history)}")
        self.history = history
        if old is not None:
            shutil.rmtree(old)

    def load_backup(self, network: keras.Model) -> int:
        """Put weights and optimizer back to the last finished epoch; return how many there are."""
        self.check()
        saved = self._backup / f"epoch-{self.finished}"
        if saved.exists():
            network.load_weights(saved / "network.weights.h5")
        elif self.finished < self.settings["EPOCHS"] or network.optimizer.iterations == 0:
            # else the run is over, and the network in memory is the trained one
            raise FileNotFoundError(f"{saved} is gone. Run all cells from the Settings cell on.")
        return self.finished

    def delete_backup(self) -> None:
        """Delete the backup of a run that is over."""
        shutil.rmtree(self._backup, ignore_errors=True)

    def record(self, **more) -> dict:
        """Return settings, processor, versions and whatever else is given."""
        self.check()
        packages = ("tensorflow", "keras", "numpy", "pandas", "scikit-learn", "scipy", "rasterio")
        return {
            "parameters": self.settings,
            **self._inputs,
            **more,
            "resumed": self.resumed,
            "processor": processor(),
            "cores": os.cpu_count(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in packages},
        }


def _count_fine_tuned(history: Sequence[dict]) -> int:
    return sum(row["phase"] == "fine-tuning" for row in history)


def _say_why_it_stopped(shell, kind, error, traceback, tb_offset=None) -> None:
    go_on = (
        "Stopped. To go on, choose Run > Run Selected Cell and All Below; finished epochs are kept."
    )
    print(str(error) or go_on)


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


# ---------------------------------------------------------------- save, judge and plot


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; rename it to `path` only if nothing failed.

    The folder of `path` is made if need be; what a symbolic link points to is replaced.
    """
    path = Path(path).expanduser().resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_json(content: dict, path: str | Path) -> None:
    """Write a dictionary as JSON, completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=float) + "\n", "utf-8")


def save_table(table: pd.DataFrame, path: str | Path, decimals: int = 4, **options) -> None:
    """Write a table as CSV, completely or not at all."""
    options = {"index": False, "errors": "backslashreplace", "lineterminator": "\n"} | options
    with atomic_path(path) as temporary:
        table.to_csv(temporary, float_format=f"%.{decimals}f", **options)


def save_model(model: keras.Model, path: str | Path) -> keras.Model:
    """Save a model, compressed, completely or not at all; return it as loaded from the file."""
    with atomic_path(path) as temporary:
        plain = temporary.with_suffix(".plain.keras")
        try:
            model.save(plain)
            with (
                zipfile.ZipFile(plain) as old,
                zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as new,
            ):
                for name in old.namelist():
                    new.writestr(name, old.read(name))
        finally:
            plain.unlink(missing_ok=True)
    return keras.saving.load_model(path)


def save_figure(
    figure: Figure, path: str | Path, alt: str | None = None, dpi: int = 110
) -> display.Image:
    """Write a figure as PNG and close it; what is returned shows that file in a notebook.

    Args:
        figure: The figure.
        path: Ends in `.png`.
        alt: What it shows, for those who cannot see it.
        dpi: Pixels an inch.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi, bbox_inches="tight", facecolor="white")
        if temporary.stat().st_size > 400_000:  # bytes: many tiles; 256 colours have to do
            with Image.open(temporary) as image:
                image.convert("RGB").quantize(256).save(temporary, optimize=True)
    plt.close(figure)
    return display.Image(path, alt=alt)


def set_style() -> None:
    """Set how all figures look, whatever a matplotlibrc says."""
    mpl.rcdefaults()
    sns.set_theme(style="whitegrid", palette="colorblind")


def plot_tiles(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: int = 10,
    correct: Sequence[bool] | None = None,
    inches: float = 1.2,
) -> Figure:
    """Show images in a grid, each below its title.

    Args:
        images: Each `uint8` `(height, width, 3)`, of the same size.
        titles: One an image; may have several lines.
        columns: Images in a row.
        correct: If given, frames images blue (right) or orange and dashed (wrong).
        inches: Width of an image.
    """
    for image in images:
        check_pixels(image, 3)
    rows = -(-len(images) // columns)
    lines = max(title.count("\n") + 1 for title in titles)
    row_inches = inches * len(images[0]) / len(images[0][0]) + 0.17 * lines
    size = (columns * inches, rows * row_inches)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(images) :]:
        axis.set_visible(False)
    filled = zip(axes.flat[: len(images)], images, titles, strict=True)
    for index, (axis, image, title) in enumerate(filled):
        axis.imshow(image, origin="upper")
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=8, pad=5, parse_math=False)
        axis.spines[:].set_visible(correct is not None)
        if correct is not None:
            color, style = ("#0072B2", "-") if correct[index] else ("#E69F00", (0, (1.5, 0.8)))
            axis.spines[:].set(linewidth=4, color=color, linestyle=style, capstyle="butt")
    return figure


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return `(n, 10)` probabilities as they are when the logits are divided by `temperature`."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), 1e-38))
    return softmax(logits / temperature, axis=1)


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that calibrates best (Guo et al. 2017, arXiv:1706.04599).

    Args:
        probabilities: `(n, 10)`.
        labels: Class indices `(n,)`.
    """

    def loss(log_temperature):
        calibrated = apply_temperature(probabilities, np.exp(log_temperature))
        return log_loss(labels, calibrated, labels=range(len(CLASSES)))

    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.1, 10]), method="bounded").x))


def calibration_bins(
    probabilities: np.ndarray, labels: np.ndarray, bins: int = 15
) -> tuple[float, pd.DataFrame]:
    """Compare confidence and accuracy (Guo et al. 2017, arXiv:1706.04599).

    Args:
        probabilities: `(n, 10)`.
        labels: Class indices `(n,)`.
        bins: Equally wide ranges of the highest probability.

    Returns:
        The expected calibration error; and `confidence`, `right`, `tiles` and `accuracy` of
        each bin that is not empty.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    table = pd.DataFrame({"confidence": confidence, "right": right, "tiles": 1})
    groups = table.groupby(np.minimum((confidence * bins).astype(int), bins - 1))
    table = groups.agg({"confidence": "mean", "right": "sum", "tiles": "sum"})
    table["accuracy"] = table["right"] / table["tiles"]
    distance = (table["accuracy"] - table["confidence"]).abs()
    return float(np.average(distance, weights=table["tiles"])), table


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Return both ends of the 95% interval of a proportion by Wilson (1927).

    It holds near 1 and for few samples, too.

    Raises:
        ValueError: `correct` is not between 0 and `total`, or `total` is 0.
    """
    interval = binomtest(int(correct), int(total)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


# ---------------------------------------------------------------- a finished run


def open_model(path: str | Path) -> keras.Model:
    """Load a model of Training.ipynb: `uint8` tiles in, probabilities `(n, 10)` out.

    Raises:
        ValueError: The file is missing, damaged, brings code, or is another model.
    """
    path = Path(path).expanduser()
    try:
        model = keras.saving.load_model(path)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: {error}. Restore the file.") from error
    if (model.input_shape[1:], model.output_shape[1:]) != ((TILE_SIZE, TILE_SIZE, 3), (10,)):
        raise ValueError(
            f"{path} takes {model.input_shape} and answers {model.output_shape}: it is not a model "
            "of Training.ipynb."
        )
    return model


def read_run(results: str | Path, model_path: str | Path) -> tuple[pd.DataFrame, dict]:
    """Read the split and the record of the run that a model comes from.

    Returns:
        The table of `split.csv` (`file`, `label`, `split`) and the content of `run.json`.

    Raises:
        FileNotFoundError: Files of the run are missing.
        ValueError: Split, record and model are not those of one run.
    """
    results, model_path = Path(results).expanduser(), Path(model_path).expanduser()
    split = pd.read_csv(results / "split.csv")
    record = json.loads((results / "run.json").read_text("utf-8"))
    if pooch.file_hash(model_path) != record["model_sha256"]:
        raise ValueError(
            f"{model_path} is not the model of {results / 'run.json'}. Give the folder that its "
            "own training wrote: RESULTS_DIR in the notebook, --results in the shell."
        )
    if split_digest(split) != record["split_sha256"]:
        raise ValueError(f"{results / 'split.csv'} is not the split of {results / 'run.json'}.")
    return split, record


# ---------------------------------------------------------------- images of any size


class Picture(NamedTuple):
    """An image in memory, and where on Earth it lies.

    Attributes:
        pixels: `uint8` `(height, width, 3)`, RGB, 0, 0, 0 where there are no data.
        name: That of its file, for messages.
        crs: Coordinate reference system, or None.
        transform: From columns and rows of pixels to coordinates x and y, or None.
        cautions: Sentences that say what makes answers doubtful.
    """

    pixels: np.ndarray
    name: str = "image"
    crs: rasterio.crs.CRS | None = None
    transform: rasterio.Affine | None = None
    cautions: tuple[str, ...] = ()


def list_images(images: str | Path | Sequence[str | Path]) -> list[Path]:
    """List image files: `images` itself, those in a folder, or all of these for a list of paths.

    Returns:
        Files in order; those in a folder that end in one of `IMAGE_SUFFIXES`.

    Raises:
        FileNotFoundError: There is no such file, or no image in the folder.
        ValueError: Two images have one name: the map of one would replace that of the other.
    """
    found = []
    for path in [images] if isinstance(images, (str, Path)) else images:
        path = Path(path).expanduser()
        if path.is_dir():
            names = sorted(path.glob("[!.]*"))
            found += [name for name in names if name.suffix.lower() in IMAGE_SUFFIXES]
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path.absolute()} does not exist.")
    if not found:
        raise FileNotFoundError(f"{images} holds no image that ends in {', '.join(IMAGE_SUFFIXES)}")
    stems = pd.Series(found).map(lambda path: path.stem.casefold())  # some systems ignore case
    if twice := pd.Series(found)[stems.duplicated(keep=False)].map(str).tolist():
        raise ValueError(f"Images of one name would get one map: {', '.join(twice)}. Rename some.")
    return found


def read_image(path: str | Path, levels: Sequence[float] | None = None) -> Picture:
    """Read an image.

    Args:
        path: PNG, JPEG, TIFF (its first page) or JPEG 2000, with red, green and blue or grey.
        levels: The values that become black and white (1 and 255; 0 is kept for no data). Needed
            unless the image has 8 or 16 bits and no sign; None is `LEVELS_16_BIT` for 16 bits.
            Images of 8 bits stay as they are.

    Returns:
        The picture. No data are pixels that are transparent, masked, declared so by the file, not
        finite or, where `levels` apply, 0 in all bands. An image that says nothing of its place is
        taken to have pixels of 10 m.

    Raises:
        OSError: The file cannot be read, or is damaged.
        ValueError: It is too large, needs levels or has other bands.
    """
    levels = _check_levels(levels)
    path = Path(path).expanduser()
    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=GDAL_CACHE):
        warnings.simplefilter("ignore")  # no coordinates; many pixels
        with rasterio.DatasetReader(path, driver=DRIVERS) as source:  # open() takes one driver
            if source.height * source.width > MAX_PIXELS:
                raise ValueError(f"{path}: more than {MAX_PIXELS:,} pixels; cut it into parts")
            crs, transform = source.crs, source.transform if source.crs else None
            assumed = (10, 10) if source.transform.is_identity else (np.nan, np.nan)  # metres
            is_unmasked = MaskFlags.all_valid in source.mask_flag_enums[0]
            suits_pillow = source.driver == "PNG" or (source.driver == "JPEG" and is_unmasked)
            if suits_pillow and source.dtypes[0] == "uint8":
                pixels = _decode_with_pillow(path, upright=crs is None)
            else:
                pixels = _decode_with_gdal(source, levels)
    picture = Picture(pixels, path.name, crs, transform)
    metres = pixel_metres(picture) if crs else assumed
    if all(8 <= size <= 12 for size in metres):
        return picture
    found = " x ".join(f"{float(f'{size:.2g}'):g}" for size in metres)
    found = "unknown size" if np.isnan(metres).any() else f"{found} m"
    return picture._replace(cautions=(f"pixels of {found}, the network knows only those of 10 m",))


def _check_levels(levels: Sequence[float] | None) -> tuple[float, float] | None:
    if levels is None:
        return None
    black, white = map(float, levels)
    if not -np.inf < black < white < np.inf:
        raise ValueError(f"Levels must be two numbers, the first one smaller, not {levels}.")
    return black, white


def _decode_with_pillow(path: Path, upright: bool) -> np.ndarray:
    """Return the pixels of a JPEG or PNG of 8 bits, decoded as the tiles of the training were."""
    with Image.open(path, formats=("JPEG", "PNG")) as image:
        image = ImageOps.exif_transpose(image) if upright else image
        if not image.has_transparency_data:
            return np.asarray(image.convert("RGB"))
        rgba = np.asarray(image.convert("RGBA"))
        return rgba[..., :3] * (rgba[..., 3:] > 0)


def _decode_with_gdal(source: rasterio.DatasetReader, levels: Sequence[float] | None) -> np.ndarray:
    """Return the pixels of any other image, read in strips."""
    bands, kind = _colour_bands(source), source.dtypes[0]
    if levels is None and kind not in ("uint8", "uint16"):
        raise ValueError(
            f"{source.name}: {kind} values need levels, what becomes black and white: 0 and 0.275 "
            "for reflectance, 0 and 2750 for 1/10,000 of it."
        )
    pixels = np.empty((*source.shape, 3), np.uint8)
    step = 1024  # rows
    for top in range(0, source.height, step):
        window = Window(0, top, source.width, min(step, source.height - top))
        values = source.read(bands, window=window)
        known = source.read_masks(bands, window=window).any(axis=0)
        for band, role in enumerate(source.colorinterp, 1):
            if role == ColorInterp.alpha:
                known &= source.read(band, window=window) > 0
        if kind != "uint8":
            known &= values.any(axis=0) & np.isfinite(values).all(axis=0)
            values = _to_8_bits(values, levels or LEVELS_16_BIT)
        pixels[top : top + step] = np.moveaxis(values * known, 0, -1)  # grey in all three
    return pixels


def _colour_bands(source: rasterio.DatasetReader) -> list[int]:
    """Return which bands are red, green and blue, or the one that is grey."""
    roles, colours = source.colorinterp, (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    tags = source.tags(ns="IMAGE_STRUCTURE") | source.tags(1, ns="IMAGE_STRUCTURE")
    few_bits = source.dtypes[0] == "uint8" and tags.get("NBITS", "8") != "8"
    if ColorInterp.palette in roles or "MINISWHITE" in tags or few_bits:
        raise ValueError(f"{source.name}: a palette, fewer than 8 bits or white as 0: save as RGB")
    if set(colours) <= set(roles):  # in whatever order, with others or without
        return [roles.index(role) + 1 for role in colours]
    bands = [band for band, role in enumerate(roles, 1) if role != ColorInterp.alpha]
    others = {roles[band - 1].name for band in bands} - {"gray", "undefined"}
    if len(bands) not in (1, 3) or (len(bands) == 3 and others):
        found = f"{len(bands)} bands {sorted(others) or ''}"
        raise ValueError(f"{source.name}: {found} instead of red, green, blue or grey")
    return bands


def _to_8_bits(values: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    bands = (np.interp(band, levels, (1, 255)) for band in values)
    return np.stack([band.round().astype(np.uint8) for band in bands])  # one at a time: memory


def pixel_metres(picture: Picture) -> tuple[float, float]:
    """Return width and height, in m, of the middle pixel of a picture with coordinates.

    They are NaN where its place on Earth cannot be computed.
    """
    row, column = np.array(picture.pixels.shape[:2]) / 2
    rows, columns = row + np.array([0, 0, 1]), column + np.array([0, 1, 0])
    x, y = rasterio.transform.xy(picture.transform, rows, columns, offset="ul")
    try:
        longitude, latitude = np.radians(rasterio.warp.transform(picture.crs, "EPSG:4326", x, y))
    except Exception:  # GDAL raises many kinds
        return np.nan, np.nan
    east = (longitude[1:] - longitude[0] + np.pi) % (2 * np.pi) - np.pi
    north = latitude[1:] - latitude[0]
    return tuple((6_371_000 * np.hypot(east * np.cos(latitude[0]), north)).tolist())


def classify_image(
    model: keras.Model,
    image: str | Path | np.ndarray | Picture,
    stride: int = TILE_SIZE,
    levels: Sequence[float] | None = None,
) -> pd.DataFrame:
    """Cut an image of any size into tiles of 64x64 pixels and classify them.

    Args:
        model: Takes `uint8` tiles `(n, 64, 64, 3)` and returns probabilities `(n, 10)`.
        image: A file as for `read_image`, what that returns, or `uint8` pixels `(h, w, 3)`.
        stride: Pixels from one tile to the next, 1 to 64.
        levels: As for `read_image`, if `image` is a file.

    Returns:
        One row a tile. `top`, `left`, `height`, `width`: the part of the image, in pixels, that is
        nearer to this tile's centre than to another's. `label` and `probability`: its most probable
        class, or `NO_DATA` and NaN if more than half of the tile has no data. `red`, `green`,
        `blue`: the mean colour of its pixels that have data, 0 to 255. If the image has
        coordinates, `x` and `y`: the tile's centre.

    Raises:
        OSError: The image cannot be read.
        ValueError: It is smaller than a tile, or not `uint8` RGB; or the stride is impossible.
    """
    if isinstance(image, (str, Path)):
        image = read_image(image, levels)
        for caution in image.cautions:
            warnings.warn(f"{image.name}: {caution}", stacklevel=2)
    elif levels is not None:
        raise ValueError("levels are for files; pixels and pictures have their colours already.")
    picture = image if isinstance(image, Picture) else Picture(image)
    check_pixels(picture.pixels, 3, picture.name)
    height, width = picture.pixels.shape[:2]
    if min(height, width) < TILE_SIZE:
        raise ValueError(f"{picture.name}: {width}x{height} pixels, smaller than a tile of 64x64")
    if stride not in range(1, TILE_SIZE + 1):
        raise ValueError(f"The stride must be a whole number from 1 to 64, not {stride!r}.")
    tops, lefts = (  # the last tile ends at the border
        np.unique(np.r_[0 : size - TILE_SIZE : int(stride), size - TILE_SIZE])
        for size in (height, width)
    )
    starts = [(top, left) for top in tops for left in lefts]
    probabilities, colours = _classify_tiles(model, picture, starts)
    borders = [
        np.r_[0, (at[1:] + at[:-1] + TILE_SIZE) // 2, size]  # halfway between tiles
        for at, size in ((tops, height), (lefts, width))
    ]
    parts = pd.MultiIndex.from_product([border[:-1] for border in borders], names=["top", "left"])
    table = parts.to_frame(index=False)
    table["height"] = np.repeat(np.diff(borders[0]), len(lefts))
    table["width"] = np.tile(np.diff(borders[1]), len(tops))
    table["label"] = np.take(CLASSES, probabilities.argmax(axis=1))
    table["probability"] = probabilities.max(axis=1)
    table.loc[table["probability"].isna(), "label"] = NO_DATA
    table[["red", "green", "blue"]] = colours
    if picture.crs is not None:
        centres = np.transpose(starts) + TILE_SIZE / 2
        table["x"], table["y"] = rasterio.transform.xy(picture.transform, *centres, offset="ul")
    return table


def _classify_tiles(
    model: keras.Model, picture: Picture, starts: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities `(n, 10)`, NaN without data, and mean colours `(n, 3)` of tiles."""
    probabilities = np.full((len(starts), len(CLASSES)), np.nan)
    colours = np.zeros((len(starts), 3))
    progress = Progress(picture.name, len(starts))
    progress.set_params({"steps": -(-len(starts) // BATCH_SIZE)})
    progress.on_predict_begin()
    shape = TILE_SIZE, TILE_SIZE, 3
    tile_at = np.lib.stride_tricks.sliding_window_view(picture.pixels, shape)[:, :, 0]
    for step, first in enumerate(range(0, len(starts), BATCH_SIZE)):
        batch = starts[first : first + BATCH_SIZE]
        tiles = tile_at[tuple(np.transpose(batch))]
        count = tiles.any(axis=-1).sum(axis=(1, 2))  # pixels that have data
        colours[first : first + len(batch)] = tiles.sum(axis=(1, 2)) / np.maximum(count, 1)[:, None]
        known = np.flatnonzero(count >= TILE_SIZE**2 / 2)
        if len(known):
            probabilities[first + known] = model.predict_on_batch(tiles[known])
        progress.on_predict_batch_end(step)
    progress.on_predict_end()
    return probabilities, colours


def unusual_colours(colours: np.ndarray, training_colours: np.ndarray) -> np.ndarray:
    """Tell which mean colours are far from those of all training tiles.

    Args:
        colours: Mean colours of tiles, `(n, 3)`, 0 to 255.
        training_colours: Those of the training tiles, `(m, 3)`, as in `training_colours.npy`.

    Returns:
        `bool` `(n,)`: further from the nearest training tile than 999 of 1,000 of these are from
        their nearest other one.
    """
    tree = cKDTree(training_colours)
    limit = np.quantile(tree.query(training_colours, k=2)[0][:, 1], 0.999)
    return tree.query(colours)[0] > limit


def area_shares(table: pd.DataFrame) -> pd.Series:
    """Return each class's share of the area in a table of `classify_image`, largest first.

    No data do not count.
    """
    area = (table["height"] * table["width"]).groupby(table["label"]).sum()
    area = area.drop(NO_DATA, errors="ignore")
    return (area / area.sum()).sort_values(ascending=False)


def write_land_cover(path: str | Path, table: pd.DataFrame, picture: Picture) -> None:
    """Write a land-cover map that programs for maps (QGIS, ArcGIS, GDAL) open.

    Args:
        path: GeoTIFF to write, with the pixels of the image: 0 for no data, 1 to 10 for `CLASSES`;
            their names are tags of the band, their colours its colour table.
        table: Of `classify_image`.
        picture: The image, with coordinates.
    """
    height, width = picture.pixels.shape[:2]
    codes = table["label"].map({name: code for code, name in enumerate(CLASSES, 1)}).fillna(0)
    grid = np.zeros((height, width), np.uint8)
    for part, code in zip(table.itertuples(), codes, strict=True):
        grid[part.top : part.top + part.height, part.left : part.left + part.width] = code
    profile = {"driver": "GTiff", "compress": "deflate", "tiled": True, "nodata": 0}
    profile |= {"dtype": "uint8", "count": 1, "height": height, "width": width}
    profile |= {"crs": picture.crs, "transform": picture.transform}
    colours = 255 * to_rgba_array(["none", *CLASS_COLOURS.values()])
    with MemoryFile() as memory, atomic_path(path) as temporary:
        with memory.open(**profile) as file:  # in memory: GDAL does not say that a disk is full
            file.write(grid, 1)
            file.write_colormap(1, dict(enumerate(colours.astype(int).tolist())))
            file.update_tags(1, **{f"class_{n}": name for n, name in enumerate(CLASSES, 1)})
        temporary.write_bytes(memory.read())


def plot_land_cover(
    image: np.ndarray, table: pd.DataFrame, title: str = "", cautions: Sequence[str] = ()
) -> Figure:
    """Plot an image, its land cover and how probable that is.

    Args:
        image: `uint8` `(height, width, 3)`.
        table: Of `classify_image`; tiles whose column `unusual`, if any, is true are hatched.
        title: Stands above.
        cautions: Why not to trust the map; they stand above it, too.
    """
    check_pixels(image, 3, title)
    x = np.r_[0, np.unique(table["left"] + table["width"])]
    y = np.r_[0, np.unique(table["top"] + table["height"])]
    grid = len(y) - 1, len(x) - 1
    code = table["label"].map({name: code for code, name in enumerate(CLASSES)})
    code, probability = (values.to_numpy().reshape(grid) for values in (code, table["probability"]))
    headings = [title[:90], *(fill(f"Careful: {text}.", 100) for text in cautions)]
    proportion = np.clip(y[-1] / x[-1], 0.3, 3)  # of what is drawn; a very long image is squeezed
    size = 12, 3.6 * proportion + 2.1 + 0.3 * len(headings)  # inches
    figure, axes = plt.subplots(1, 3, figsize=size, layout="compressed", sharey=True)
    step = -(-max(image.shape) // 1000)
    small = np.asarray(Image.fromarray(image).reduce(step)) if step > 1 else image
    grey = np.repeat(0.6 + small.mean(axis=-1, keepdims=True) / 640, 3, axis=-1)  # pale: 0.6 to 1
    grey[~small.any(axis=-1)] = 1  # no data
    shown = {"image": small, "land cover": grey, "probability of that class": grey}
    for axis, (heading, pixels) in zip(axes, shown.items(), strict=True):
        axis.imshow(pixels, extent=(0, x[-1], y[-1], 0), origin="upper")
        axis.set(title=heading, xlabel="pixels", aspect=proportion * x[-1] / y[-1])
        axis.grid(False)
    axes[0].set_ylabel("pixels")
    alpha = 0.8  # of class colours laid over the image
    style = {"cmap": ListedColormap(list(CLASS_COLOURS.values())), "alpha": alpha}
    axes[1].pcolormesh(x, y, code, vmin=-0.5, vmax=len(CLASSES) - 0.5, **style)
    mesh = axes[2].pcolormesh(x, y, 100 * probability, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(mesh, cax=axes[2].inset_axes([1.04, 0, 0.05, 1]), label="%")
    handles = [
        Patch(fc=CLASS_COLOURS[name], alpha=alpha, label=f"{name} {share:.1%}")
        for name, share in area_shares(table).items()
    ]
    if "unusual" in table and table["unusual"].any():
        handles.append(_hatch(axes[1], x, y, table["unusual"].to_numpy(float).reshape(grid)))
    place = {"loc": "outside lower center", "ncols": 5, "frameon": False}
    figure.legend(handles=handles, title="share of the area", **place)
    style = {"parse_math": False, "color": "#a50026" if cautions else "black"}
    figure.suptitle("\n".join(filter(None, headings)), **style)
    return figure


def _hatch(axis: Axes, x: np.ndarray, y: np.ndarray, unusual: np.ndarray) -> Patch:
    """Grey and hatch unusual tiles; return what stands for them in the legend."""
    masked = np.ma.masked_equal(unusual, 0)
    axis.pcolormesh(x, y, masked, cmap=ListedColormap(["#dddddd"]), alpha=0.75)
    style = {"hatch": "////", "linewidth": 0}
    axis.pcolor(x, y, masked, cmap=ListedColormap(["none"]), edgecolor="#555555", **style)
    return Patch(fc="#dddddd", ec="#555555", label="unusual colours", **style)


def map_images(
    model: keras.Model,
    images: str | Path | Sequence[str | Path],
    folder: str | Path,
    training_colours: np.ndarray,
    stride: int = TILE_SIZE,
    levels: Sequence[float] | None = None,
) -> pd.DataFrame:
    """Classify images, each by itself, and save what was found.

    An image NAME.tif that is larger than a tile leaves `NAME_map.png`, `NAME_tiles.csv` (of
    `classify_image`, with a column `unusual`) and, if it has coordinates, `NAME_land_cover.tif`.

    Args:
        model: As for `classify_image`.
        images: As for `list_images`.
        folder: The files are written there.
        training_colours: As for `unusual_colours`.
        stride: As for `classify_image`.
        levels: As for `read_image`.

    Returns:
        One row an image, also saved as `overview.csv`: `image`; `width` and `height` in pixels;
        `tiles`; `largest_class`; `land_cover`, the shares of the three largest classes;
        `probability`, the mean of the tiles' probabilities; `warning`, why not to trust it; and
        `problem`, why it could not be used.

    Raises:
        FileNotFoundError: There is no image.
        ValueError: Two images have one name, the levels are impossible, or the images are in
            `folder`.
    """
    _check_levels(levels)
    rows, paths = [], list_images(images)
    if Path(folder).resolve() in {path.resolve().parent for path in paths}:
        raise ValueError(f"{folder} holds the images: give another folder for their maps.")
    for path in paths:
        row = {"image": path.name, "land_cover": "", "warning": "", "problem": ""}
        try:
            picture = read_image(path, levels)
            table = classify_image(model, picture, stride)
            known = table["label"] != NO_DATA
            if not known.any():
                raise ValueError("no data: (nearly) all pixels are black, masked or transparent")
            colours = table[["red", "green", "blue"]]
            table["unusual"] = known & unusual_colours(colours, training_colours)
            share, cautions = table["unusual"].sum() / known.sum(), list(picture.cautions)
            if share > 0.01:
                text = f"{share:.0%} of the tiles have unusual colours, do not trust the answers"
                cautions.append(f"{text} (README.md, Your own images, says what helps)")
            if len(table) > 1:
                _save_map(Path(folder) / path.stem, picture, table, cautions)
            shares = area_shares(table).head(3)
            row["height"], row["width"] = picture.pixels.shape[:2]
            row["tiles"] = len(table)
            row["largest_class"] = shares.index[0]
            row["land_cover"] = ", ".join(f"{name} {part:.1%}" for name, part in shares.items())
            row["probability"] = table["probability"].mean()
            row["warning"] = "; ".join(cautions)
        except Exception as error:  # whatever is wrong with one must not stop the others
            reason = " ".join(f"{error} {error.__cause__ or ''}".split())
            row["problem"] = reason or type(error).__name__
        rows.append(row)
    columns = ["image", "width", "height", "tiles", "largest_class", "land_cover", "probability"]
    overview = pd.DataFrame(rows, columns=[*columns, "warning", "problem"])
    whole_numbers = ["width", "height", "tiles"]
    overview[whole_numbers] = overview[whole_numbers].astype("Int64")  # empty where not used
    save_table(overview, Path(folder) / "overview.csv")
    return overview


def _save_map(stem: Path, picture: Picture, table: pd.DataFrame, cautions: Sequence[str]) -> None:
    save_table(table, f"{stem}_tiles.csv", decimals=6)
    if picture.crs is not None:
        write_land_cover(f"{stem}_land_cover.tif", table, picture)
    with mpl.rc_context():
        set_style()
        figure = plot_land_cover(picture.pixels, table, picture.name, cautions)
        save_figure(figure, f"{stem}_map.png", dpi=85)


def main() -> int:
    """Make land-cover maps of your own images, from the shell."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description="Make land-cover maps of your own images. They must look like EuroSAT: bands "
        "4, 3, 2 of Sentinel-2, level 1C, 10 m per pixel; see README.md.",
    )
    add = parser.add_argument
    add("images", nargs="+", help="images (PNG, JPEG, TIFF, JPEG 2000) or folders of them")
    add(
        "--levels",
        nargs=2,
        type=float,
        metavar=("BLACK", "WHITE"),
        help="the values that become black and white, unless images have 8 bits; 1000 3750 for "
        "products since 2022. 16 bits: 0 2750 if not given",
    )
    add(
        "--stride",
        type=int,
        default=TILE_SIZE,
        help="pixels from one tile to the next, 1 to 64 (default); fewer: a finer, slower map",
    )
    add("--output", help="folder for the maps; if not given, one in results/own_images")
    add("--model", default=here / "models/eurosat_resnet50.keras", help="of Training.ipynb")
    add("--results", type=Path, default=here / "results", help="what the model's training wrote")
    options = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # names that the console cannot show
    try:
        first = list_images(options.images)[0]
        output = options.output or here / "results/own_images" / first.resolve().parent.name
        model = open_model(options.model)
        read_run(options.results, options.model)
        colours = np.load(options.results / "training_colours.npy")
        overview = map_images(
            model, options.images, output, colours, options.stride, options.levels
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for row in overview.itertuples():
        warning = f"  Careful: {row.warning}." if row.warning else ""
        print(f"{row.image}: {row.land_cover or 'not used, ' + row.problem}{warning}")
    print(f"Maps and tables are in {output}")
    return int((overview["problem"] != "").any())


if __name__ == "__main__":
    sys.exit(main())
