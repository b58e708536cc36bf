"""Load, split and plot EuroSAT (RGB) and classify images: what both notebooks share.

The functions follow the data: fetch, list, load, split, save, plot, classify. Importing silences
start-up notes and settles that Keras runs on TensorFlow, on the CPU, in float32.
"""

import copy
import hashlib
import json
import os
import platform
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rasterio
import rasterio.warp
from IPython import display, get_ipython
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch
from numpy.typing import ArrayLike
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2
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
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # else off without AVX-512; halves the time
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # these notebooks are for the CPU
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the user's keras.json says
try:
    _stderr = os.dup(2)
except OSError:  # closed, or a Windows program without a console
    _stderr = os.open(os.devnull, os.O_WRONLY)
with Path(os.devnull).open("w") as _null:
    os.dup2(_null.fileno(), 2)
    try:
        import keras
        import pooch
        import tensorflow as tf
    finally:
        os.dup2(_stderr, 2)
        if _stderr != 2:
            os.close(_stderr)
keras.config.set_image_data_format("channels_last")  # as the next two: whatever keras.json says
keras.config.set_floatx("float32")
keras.config.set_dtype_policy("float32")
tf.get_logger().setLevel("ERROR")  # no notes on tracing, either

# Helber et al. 2019, "EuroSAT", IEEE JSTARS 12(7), doi:10.1109/JSTARS.2019.2918242
CLASSES = (
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture",
    "PermanentCrop", "Residential", "River", "SeaLake",
)  # fmt: skip
LEVELS = (0, 2750)  # what became black and white in EuroSAT, in 1/10,000 of the reflectance
BATCH_SIZE = 64  # tiles that are classified in one step
DATA_OPTIONS = tf.data.Options()
DATA_OPTIONS.autotune.enabled = False  # its thread can keep the end of a pass waiting for a minute
NO_DATA = "no data"  # instead of a class
TILE_SIZE = 64  # pixels; one pixel is 10 m on the ground
ARCHIVES = {  # file name: (URL, SHA-256); the same tiles, packed differently
    "EuroSAT_RGB.zip": (
        "https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip",
        "b4f5b234ecb7d7ff9c6cddb046543b4717c53fd6e9815be6c0e80cc614f51b90",
    ),
    "EuroSAT.zip": (
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
        "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        "8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
    ),
}
IMAGENET_WEIGHTS = (
    "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
    "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
)
LONGITUDE_LISTS = {  # torchgeo's EuroSATSpatial: part: (URL, SHA-256); one name of a tile a line
    part: (
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
        f"1ce6f1bfb56db63fd91b6ecc466ea67f2509774c/eurosat-spatial-{short}.txt",
        sha256,
    )
    for part, short, sha256 in (
        ("train", "train", "2db7d455afb8dcbca898ea19a00f1f90c091734efdbba89e22aaf24056da243f"),
        ("validation", "val", "6c758477604b7057a0fd990d7f6327b63b99a6725aac11a6a9d0174a7fdd8f0b"),
        ("test", "test", "de22dec83d350cac3b3e4ca8e285cb6733c81ab94bf5bcf9213a567993402452"),
    )
}
USER_AGENT = "eurosat-notebooks/1.0"  # Zenodo turns generic Python clients away
GDAL_OPTIONS = {
    "GDAL_CACHEMAX": 256 * 2**20,  # bytes; the default is 5% of the machine's memory
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",  # by default what is missing is whatever was in memory
}
DRIVERS = ("JPEG", "PNG", "GTiff", "JP2OpenJPEG")  # some other formats refer to further files
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".jp2")
COLOUR_ROLES = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
TURNS = {  # EXIF's orientations other than 1, as what has to be done
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_PIXELS = 400_000_000  # of an image: three Sentinel-2 scenes, 1.2 GB in memory
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow warns above this and refuses the double of it
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
MAP_ALPHA = 0.8  # of class colours laid over an image
MAX_DATA_BYTES = 10**9  # bytes of an extracted archive; EuroSAT has a tenth of that
MAX_FIGURE_BYTES = 400_000  # bytes; a page with a dozen such figures still opens fast
TIMEOUT = 60  # seconds without an answer before the next source is tried


# ---------------------------------------------------------------- fetch, load and split


def path_setting(name: str, value: str | Path) -> Path:
    """Return a setting as a path, `~` expanded.

    `papermill -p` makes numbers of names such as `2750`, `1e3` and `2024_06`. A whole number is
    taken if something in the working folder has this name and nothing else there reads as it.

    Args:
        name: The setting, for the message.
        value: What the user gave.

    Raises:
        ValueError: It is empty, or not text, or may mean several things.
    """
    if isinstance(value, str | os.PathLike) and str(value).strip():
        with suppress(RuntimeError):  # ~ of an unknown user: a file's name
            return Path(value).expanduser()
        return Path(value)
    if type(value) is int:
        names = [entry.name for entry in Path().iterdir() if _reads_as(entry.name, value)]
        if names == [str(value)]:
            return Path(names[0])
    raise ValueError(
        f"{name} must be a path, not {value!r}. papermill's -p makes numbers of some names: write "
        f"the name with ./ before it, as in -p {name} ./2750, or give it with -r instead of -p."
    )


def _reads_as(text: str, number: int) -> bool:
    with suppress(ValueError):
        return int(text) == number
    return False


def fetch_eurosat(data_dir: str | Path = "data") -> Path:
    """Find EuroSAT below a folder; extract or download it only if it is not there.

    Args:
        data_dir: Holds the ten class folders (also below `EuroSAT_RGB/` or `2750/`), an archive, or
            nothing yet; or is itself a .zip archive, which is extracted beside it.

    Returns:
        The folder that contains the class folders.

    Raises:
        ValueError: An archive that is present cannot be extracted.
        FileNotFoundError: Nothing is present and no download worked.
    """
    data_dir = path_setting("DATA_DIR", data_dir)
    is_archive = data_dir.suffix.lower() == ".zip" and not data_dir.is_dir()
    if is_archive and data_dir.exists():
        return _class_root(data_dir.with_suffix("")) or _extract(data_dir, data_dir.stem)
    if is_archive or data_dir.is_file():
        raise ValueError(f"DATA_DIR: {data_dir} is neither a folder nor an existing .zip archive.")
    if (folder := _class_root(data_dir)) is not None:
        return folder
    for name in ARCHIVES:
        if (data_dir / name).is_file():
            return _extract(data_dir / name)
    failures = []
    for name, (url, sha256) in ARCHIVES.items():
        if failure := _download(url, sha256, data_dir, name):
            failures.append(failure)
        else:
            return _extract(data_dir / name)
    raise FileNotFoundError(
        "\n".join(
            [f"EuroSAT is not in {data_dir.absolute()} and could not be downloaded:", *failures]
        )
        + f"\nDownload one of these files with a browser and put it, as {' or '.join(ARCHIVES)}, "
        f"into {data_dir.absolute()}; then run this cell again.\n"
        "Or see both notebooks at work on tiles that are drawn: python tests/demo.py"
    )


def _download(url: str, sha256: str, folder: Path, name: str) -> str | None:
    """Download a file and verify it; return why that failed, if it did."""
    agent = {"User-Agent": USER_AGENT}
    has_console = sys.stderr is not None
    downloader = pooch.HTTPDownloader(progressbar=has_console, headers=agent, timeout=TIMEOUT)
    registry = {"registry": {name: f"sha256:{sha256}"}, "urls": {name: url}}
    try:
        pooch.create(folder, "", retry_if_failed=1, **registry).fetch(name, downloader=downloader)
    except (OSError, ValueError) as error:  # network or disk; wrong checksum
        return f"  {url}\n    {type(error).__name__}: {error}"
    return None


def _class_root(folder: Path) -> Path | None:
    """Return where the class folders are: in `folder`, below a root's name, or below two of it."""
    twice = folder / "EuroSAT_RGB" / "EuroSAT_RGB"
    roots = (folder / "EuroSAT_RGB", folder / "2750", folder, twice)
    return next((root for root in roots if any((root / name).is_dir() for name in CLASSES)), None)


def _extract(archive: Path, name: str = "EuroSAT_RGB") -> Path:
    """Extract to a folder of that name beside the archive, which appears when it is complete."""
    target = archive.with_name(name)
    if target.exists() and _class_root(target) is None:
        message = (
            f"{target} exists but does not hold EuroSAT. Move it away and run this cell again."
        )
        raise ValueError(message)
    try:
        beside = {"dir": archive.parent, "ignore_cleanup_errors": True}
        with (
            zipfile.ZipFile(archive) as content,
            tempfile.TemporaryDirectory(**beside) as temporary,
        ):
            members = content.infolist()
            if (size := sum(member.file_size for member in members)) > MAX_DATA_BYTES:
                raise ValueError(
                    f"{archive} would fill {size / 1e9:.1f} GB of disk: it is not EuroSAT's RGB "
                    f"tiles. Put {' or '.join(ARCHIVES)} in its place."
                )
            for member in members:
                member.filename = member.filename.replace("\\", "/")  # packed by PowerShell 5
            content.extractall(temporary, members)  # never outside, whatever the names; no links
            here = Path(temporary)
            places = [here, *sorted(here.glob("*")), *sorted(here.glob("*/*"))]
            roots = [_class_root(place) for place in places if "__MACOSX" not in place.parts]
            if (root := next(filter(None, roots), None)) is None:
                names = ", ".join(CLASSES)
                raise ValueError(f"{archive} does not contain the EuroSAT class folders {names}.")
            try:
                list_tiles(root)
            except ValueError as error:
                raise ValueError(str(error).replace(str(root), str(archive))) from None
            return root.rename(target)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(  # RuntimeError: encrypted
            f"{archive} is damaged or not a zip archive ({error}). Delete it and run this cell "
            "again."
        ) from error
    except OSError as error:
        if (folder := _class_root(target)) is not None:  # another process was faster
            return folder
        raise ValueError(
            f"{archive} cannot be extracted to {target} ({error}). Make room for it, or choose "
            "another DATA_DIR."
        ) from error


def list_tiles(folder: str | Path) -> pd.DataFrame:
    """List all tiles in a fixed order, whatever order the operating system lists files in.

    Args:
        folder: Folder with the ten class folders.

    Returns:
        One row a tile, sorted by file: `file` (`Class/Class_n.jpg`, below `folder`) and `label`.

    Raises:
        ValueError: Class folders are missing, empty or unknown, or hold other files.
    """
    folder = Path(folder)
    folders = {path.name for path in folder.iterdir() if path.is_dir()}
    folders = {name for name in folders if not name.startswith((".", "__MACOSX"))}
    problems = [
        f"{folder / name}: class folder is missing" for name in sorted(set(CLASSES) - folders)
    ]
    problems += [
        f"{folder / name}: not an EuroSAT class" for name in sorted(folders - set(CLASSES))
    ]
    rows, litter = [], ("Thumbs.db", "desktop.ini")
    advice = (
        "Restore what is missing, move away what does not belong there, and run this cell again."
    )
    for label in sorted(folders & set(CLASSES)):
        names = sorted(path.name for path in (folder / label).iterdir())
        names = [name for name in names if not name.startswith(".") and name not in litter]
        foreign = [name for name in names if not name.lower().endswith((".jpg", ".jpeg"))]
        if names and all(name.lower().endswith((".tif", ".tiff")) for name in names):
            advice = "This is the other EuroSAT, with 13 bands: use the RGB one, EuroSAT_RGB.zip."
        problems += [f"{folder / label / name}: not a JPEG tile" for name in foreign]
        if not names:
            problems.append(f"{folder / label}: class folder is empty")
        rows += [(f"{label}/{name}", label) for name in names if name not in foreign]
    _raise_if_any(problems, advice)
    return pd.DataFrame(rows, columns=["file", "label"])


def load_tiles(folder: str | Path, files: Iterable[str]) -> np.ndarray:
    """Decode tiles into memory.

    Args:
        folder: Folder with the ten class folders.
        files: Paths relative to `folder`.

    Returns:
        `uint8` array of shape `(len(files), 64, 64, 3)`, RGB, in the order of `files`.

    Raises:
        ValueError: Files are unreadable, truncated, or not 64x64 RGB.
    """
    paths = [Path(folder, file) for file in files]
    tiles = np.empty((len(paths), TILE_SIZE, TILE_SIZE, 3), np.uint8)
    problems = []
    for index, path in enumerate(paths):  # threads would be slower: so small files leave no time
        try:
            with Image.open(path) as image:
                if image.size == (TILE_SIZE, TILE_SIZE) and image.mode == "RGB":
                    tiles[index] = np.asarray(image)
                else:
                    found = f"{image.width}x{image.height} {image.mode}"
                    problems.append(f"{path}: {found} instead of 64x64 RGB")
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken files
            problems.append(f"{path}: {error}")
    advice = "Replace these files, for example from a fresh archive, and run this cell again."
    _raise_if_any(problems, advice)
    return tiles


def _raise_if_any(problems: list[str], advice: str) -> None:
    if problems:
        lines = [f"{len(problems):,} problem(s) in the data set:", *problems[:10]]
        lines += [f"... and {len(problems) - 10:,} more"] if len(problems) > 10 else []
        raise ValueError("\n  ".join(lines) + f"\n{advice}")


def split_tiles(tiles: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Assign each tile to training, validation or test: 60/20/20, disjoint, stratified by class.

    Args:
        tiles: Columns `file` and `label`, as from `list_tiles`; the order of rows does not matter.
        seed: Same seed and same files give the same split.

    Returns:
        `tiles` sorted by `file`, with a column `split` (`train`, `validation` or `test`).

    Raises:
        ValueError: A class has fewer than 5 tiles, too few for three parts.
    """
    tiles = tiles.sort_values("file", ignore_index=True)
    if (few := tiles["label"].value_counts().loc[lambda count: count < 5]).size:
        raise ValueError(f"Three parts need at least 5 tiles a class; found {few.to_dict()}.")
    labels = tiles["label"]
    train, rest = train_test_split(tiles.index, train_size=0.6, stratify=labels, random_state=seed)
    validation, test = train_test_split(
        rest, test_size=0.5, stratify=labels[rest], random_state=seed
    )
    for part, name in ((train, "train"), (validation, "validation"), (test, "test")):
        tiles.loc[part, "split"] = name
    return tiles


def split_by_longitude(tiles: pd.DataFrame, data_dir: str | Path) -> pd.DataFrame:
    """Assign each tile to training (west), validation or test (east of 17.41 degrees).

    It is the published split of torchgeo's `EuroSATSpatial`: no tile of the test part is nearer
    than 438 km to one of the training part.

    Args:
        tiles: Columns `file` and `label`, as from `list_tiles`; all of EuroSAT or a part of it.
        data_dir: As for `fetch_eurosat`. The three published lists are found there, in `longitude/`
            below it, or beside it; they are downloaded to it otherwise.

    Returns:
        `tiles` sorted by `file`, with a column `split` (`train`, `validation` or `test`).

    Raises:
        FileNotFoundError: A list is not there and could not be downloaded.
        ValueError: A list is not the published one, or does not suit the tiles.
    """
    data_dir = path_setting("DATA_DIR", data_dir)
    parts = {}
    for part, (url, sha256) in LONGITUDE_LISTS.items():
        for name in _fetch_list(url, sha256, data_dir).read_text("utf-8").split():
            parts[f"{name.rsplit('_', 1)[0]}/{name}"] = part
    tiles = tiles.sort_values("file", ignore_index=True)
    tiles["split"] = tiles["file"].map(parts)
    if unknown := list(tiles["file"][tiles["split"].isna()]):
        raise ValueError(
            f"{len(unknown):,} tiles are in none of the lists of the split by longitude, such as "
            f"{', '.join(unknown[:3])}. It is for EuroSAT as published; split others at random."
        )
    counts = pd.crosstab(tiles["label"], tiles["split"]).reindex(
        columns=list(LONGITUDE_LISTS), fill_value=0
    )
    if empty := [f"{label} in {part}" for (label, part), n in counts.stack().items() if n == 0]:
        raise ValueError(
            f"The split by longitude leaves no tile: {', '.join(empty)}. Use more tiles."
        )
    return tiles


def _fetch_list(url: str, sha256: str, data_dir: Path) -> Path:
    """Find a published list in or beside the data, or download it; verify it in any case."""
    folder, name = data_dir.parent if data_dir.is_file() else data_dir, url.rsplit("/", 1)[1]
    places = [folder, folder / "longitude", folder.parent, folder.parent / "longitude"]
    for path in (place / name for place in places):
        if path.is_file():
            if pooch.file_hash(path) != sha256:
                raise ValueError(
                    f"{path} is not the published list. Delete it: it will be downloaded."
                )
            return path
    if failure := _download(url, sha256, folder, name):
        raise FileNotFoundError(
            f"The split by longitude needs a list that could not be downloaded:\n{failure}\n"
            f"Download it with a browser and put it, as {name}, into {folder.absolute()}; then run "
            'this cell again. Or set SPLIT = "random", which needs no list.'
        )
    return folder / name


def split_digest(split: pd.DataFrame) -> str:
    """Return the SHA-256 of a split's list, which is also that of the file `split.csv`."""
    text = split[["file", "label", "split"]].to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()


# ---------------------------------------------------------------- network and training


def fold_normalisation(network: keras.Model) -> keras.Model:
    """Return a network with each batch normalisation computed into the convolution before it.

    With its averages kept as they are, a batch normalisation only multiplies and adds. Folded,
    the answers are the same, and training and classifying are faster (`results/speed.csv`).

    Args:
        network: Layers named as in `keras.applications.ResNet50`: `..._bn` follows `..._conv`.
    """

    def call(layer, *inputs, **options):
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


def load_backbone(weights: str | Path) -> keras.Model:
    """Return ResNet50 without its last layer, batch normalisation folded.

    Args:
        weights: `"imagenet"`, a weights file of `keras.applications.ResNet50` without its top,
            or a model that Training.ipynb saved.

    Returns:
        Prepared images of any size in, 2,048 features out; its layers compute in the current
        dtype policy.

    Raises:
        ValueError: The weights cannot be had, or belong to another network.
    """
    is_file = weights != "imagenet"
    source = Path(weights).expanduser() if is_file else weights
    is_own = is_file and source.suffix == ".keras"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Skipping nested container")  # else left random
            network = keras.applications.ResNet50(
                include_top=False,
                weights=None if is_own else source,
                input_shape=(None, None, 3),
                pooling="avg",
            )
        folded = fold_normalisation(network)
        if is_own:
            saved = keras.saving.load_model(source).get_weights()
            folded.set_weights(saved[:-2])  # all but those of the last layer
    except Exception as error:  # no download; no HDF5, damaged, another network: Keras raises many
        raise ValueError(
            f"WEIGHTS: {weights} cannot be loaded into a ResNet50 without its top ({error}). "
            f"Without internet, fetch {IMAGENET_WEIGHTS} elsewhere and give that file."
        ) from error
    return folded


def weights_file(weights: str | Path) -> dict[str, str | None]:
    """Return the name and the SHA-256 of the file that `load_backbone` reads."""
    cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"), "models")
    is_imagenet = weights == "imagenet"
    path = cache / Path(IMAGENET_WEIGHTS).name if is_imagenet else Path(weights).expanduser()
    return {"file": path.name, "sha256": pooch.file_hash(path) if path.is_file() else None}


def fastest_dtype() -> str:
    """Return `"bfloat16"` if a Linux system says that the processor has it, else `"float32"`."""
    cpuinfo = Path("/proc/cpuinfo")
    has_bfloat16 = cpuinfo.is_file() and "_bf16" in cpuinfo.read_text()  # avx512_bf16 or amx_bf16
    return "bfloat16" if has_bfloat16 else "float32"


def training_pflop(sizes: Sequence[int], tiles: int) -> float:
    """Return how many PFLOP (1e15 operations) an epoch at each size takes with so many tiles."""
    forward = 1.42e9 * sum((size / 96) ** 2 for size in sizes)  # convolutions of ResNet50
    return 3 * forward * tiles / 1e15  # the way back costs twice the way forward


def measure_speed(model: keras.Model, tiles: np.ndarray, labels: np.ndarray) -> float:
    """Return how many tiles a second a compiled model trains on; it is left as it was.

    Args:
        model: Compiled, its optimizer built.
        tiles: One batch, `uint8` `(n, 64, 64, 3)`.
        labels: Class indices `(n,)`.
    """
    variables = [*model.variables, *model.optimizer.variables]
    before = [variable.numpy() for variable in variables]
    model.train_on_batch(tiles, labels)  # compiles
    start = time.perf_counter()
    for _ in range(3):
        model.train_on_batch(tiles, labels)
    seconds = (time.perf_counter() - start) / 3
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    return len(tiles) / seconds


class RiseAndFall(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises in a tenth of the steps and then falls to zero, in straight lines.

    Args:
        highest: The rate at its peak.
        steps: In all. The rate is never outside 0 to `highest`, whatever the step.
    """

    def __init__(self, highest: float, steps: int):
        self.highest, self.steps = highest, steps

    def __call__(self, step):
        """Return the rate of a step, the first of which is 0."""
        share = (keras.ops.cast(step, "float32") + 1) / (self.steps + 1)
        line = keras.ops.minimum(10 * share, (1 - share) / 0.9)
        return self.highest * keras.ops.maximum(0, keras.ops.minimum(1, line))

    def get_config(self) -> dict:
        """Return the arguments."""
        return {"highest": self.highest, "steps": self.steps}


class Progress(keras.callbacks.Callback):
    """One line that moves while Keras works: share done, tiles a second, time left.

    Args:
        what: Begins the line.
        tiles: How many one pass takes.
        costs: Of each epoch, in any unit, if there are several.

    Attributes:
        seconds: How long the last epoch took, validation included.

    Raises:
        RuntimeError: The loss is no longer a number.
    """

    def __init__(self, what: str, tiles: int, costs: Sequence[float] = (1,)):
        super().__init__()
        self.what, self.tiles, self.costs, self._line = what, tiles, costs, None

    def on_epoch_begin(self, epoch, logs=None) -> None:  # noqa: D102
        self._start = self._shown = time.perf_counter()
        self._rest = sum(self.costs[epoch + 1 :]) / self.costs[epoch]
        self._show("starting")

    def on_train_batch_end(self, batch, logs=None) -> None:  # noqa: D102
        if not np.isfinite(loss := (logs or {}).get("loss", 0)):
            raise RuntimeError(
                f"{self.what}: the loss became {loss} in step {batch + 1}. Lower LEARNING_RATE "
                "and run the cells again from Settings on."
            )
        now, steps = time.perf_counter(), self.params["steps"]
        if batch == 2:  # the first steps include compiling
            self._warm = now
        if batch > 2 and now - self._shown > 1:
            self._shown = now
            step = (now - self._warm) / (batch - 2)
            left = step * (steps * (1 + self._rest) - batch - 1)
            speed = self.tiles / steps / step
            self._show(f"{(batch + 1) / steps:.0%}, {speed:.0f} tiles/s, {minutes(left)} left")

    def on_epoch_end(self, epoch, logs=None) -> None:  # noqa: D102
        self.seconds = time.perf_counter() - self._start
        print(
            f"epoch {epoch + 1} of {len(self.costs)}: {minutes(self.seconds)}, accuracy "
            f"{logs['accuracy']:.2%}, on validation {logs['val_accuracy']:.2%}"
        )
        self._show(f"{epoch + 1} of {len(self.costs)} epochs are done")

    def on_predict_begin(self, logs=None) -> None:  # noqa: D102
        self.on_epoch_begin(0)

    on_predict_batch_end = on_train_batch_end

    def on_predict_end(self, logs=None) -> None:  # noqa: D102
        seconds = time.perf_counter() - self._start
        self._show(f"{self.tiles:,} tiles in {minutes(seconds)}", end="\n")

    def _show(self, text: str, end: str = "") -> None:
        line = f"{self.what}: {text}"
        if get_ipython() is None:
            print(f"\r{line:<79}", end=end, flush=True)
        elif self._line is None:
            self._line = display.display({"text/plain": line}, raw=True, display_id=True)
        else:
            self._line.update({"text/plain": line}, raw=True)


def minutes(seconds: float) -> str:
    """Return a duration in words, such as `40 s` or `3.5 min`."""
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{seconds / 60:.1f} min"


def predict(
    model: keras.Model, tiles: np.ndarray, what: str, batch_size: int = BATCH_SIZE
) -> np.ndarray:
    """Return what a model answers to many tiles, and show how far it is.

    Args:
        model: Takes `uint8` tiles `(n, 64, 64, 3)`.
        tiles: All of them.
        what: Begins the line that shows it.
        batch_size: Tiles in one step.

    Returns:
        The answers, such as `float32` probabilities `(n, 10)`.
    """
    data = tf.data.Dataset.from_tensor_slices(tiles).batch(batch_size).with_options(DATA_OPTIONS)
    return model.predict(data, verbose=0, callbacks=[Progress(what, len(tiles))])


# ---------------------------------------------------------------- a run of Training.ipynb


def _is_number(low: float, high: float, kind=(int, float)):
    return lambda value: type(value) in np.atleast_1d(kind) and low <= value <= high


def _is_path(name: str):
    def check(value):
        path_setting(name, value)
        return True

    return check


_STAGES = ("conv1", "conv2", "conv3", "conv4", "conv5")
_is_size, _is_seed = _is_number(32, 512, int), _is_number(0, 2**32 - 1, int)
SETTINGS = {  # of Training.ipynb: what would fail late or silently do something else, otherwise
    "DATA_DIR": (_is_path("DATA_DIR"), "a path"),
    "SPLIT": (lambda value: value in ("random", "longitude"), '"random" or "longitude"'),
    "SPLIT_SEED": (_is_seed, "a whole number from 0 to 4,294,967,295"),
    "IMAGES_PER_CLASS": (
        lambda value: value is None or _is_number(5, 10_000, int)(value),
        "None or a whole number of 5 or more",
    ),
    "WEIGHTS": (
        lambda value: value == "imagenet" or path_setting("WEIGHTS", value).is_file(),
        '"imagenet" or an existing file',
    ),
    "IMAGE_SIZES": (
        lambda value: isinstance(value, list) and value and all(map(_is_size, value)),
        "a list of whole numbers from 32 to 512, one for each epoch",
    ),
    "FINE_TUNED_STAGES": (
        lambda value: isinstance(value, list) and set(value) <= set(_STAGES),
        f"a list of some of {', '.join(_STAGES)}",
    ),
    "BATCH_SIZE": (_is_number(1, 1024, int), "a whole number from 1 to 1,024"),
    "HEAD_EPOCHS": (_is_number(1, 1000, int), "a whole number from 1 to 1,000"),
    "HEAD_LEARNING_RATE": (_is_number(1e-8, 0.1), "a number from 1e-8 to 0.1"),
    "LEARNING_RATE": (_is_number(1e-8, 0.1), "a number from 1e-8 to 0.1"),
    "WEIGHT_DECAY": (_is_number(0, 1), "a number from 0 to 1"),
    "DTYPE": (
        lambda value: value in (None, "float32", "bfloat16"),
        '"float32", "bfloat16" or None',
    ),
    "SEED": (_is_seed, "a whole number from 0 to 4,294,967,295"),
    "MODEL_PATH": (
        lambda value: path_setting("MODEL_PATH", value).suffix == ".keras",
        "a path that ends in .keras",
    ),
    "RESULTS_DIR": (_is_path("RESULTS_DIR"), "a path"),
}


def training_settings(namespace: Mapping) -> dict:
    """Return a copy of the settings of Training.ipynb, by name.

    Args:
        namespace: Holds them, as `globals()` does.

    Raises:
        ValueError: Settings cannot work, or a folder cannot be written to; all are named.
    """
    settings = {name: copy.deepcopy(namespace[name]) for name in SETTINGS}
    problems = []
    for name, (is_right, wanted) in SETTINGS.items():
        try:
            if not is_right(settings[name]):
                problems.append(f"{name}: give {wanted}, not {settings[name]!r}")
        except (ValueError, TypeError) as error:
            problems.append(str(error))
    if problems:
        raise ValueError("Please change these settings.\n  " + "\n  ".join(problems))
    model_path, results = (path_setting(k, settings[k]) for k in ("MODEL_PATH", "RESULTS_DIR"))
    for folder in (model_path.parent, results):
        try:  # found out now, not after the training
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be written to ({error}). Choose another folder in the settings."
            ) from error
        if shutil.disk_usage(folder).free < 1.5e9:
            raise ValueError(
                f"{folder} is on a disk with less than 1.5 GB left. Free some space or choose "
                "another folder."
            )
    return settings


class MixedRuns(RuntimeError):
    """Cells of different settings would be mixed. Jupyter shows the sentence alone."""

    def _render_traceback_(self) -> list[str]:  # Jupyter asks for this
        return [str(self)]


class Run:
    """What belongs to one run of Training.ipynb: settings, finished steps, backup, record.

    It sees to it that nothing of different runs is mixed: cells that are left out after a change
    of settings stop with a sentence, and a backup is used only by a run with equal settings.

    Args:
        namespace: The notebook's `globals()`, looked at again in every step.

    Attributes:
        settings: By name, as they were when the run began.
        seconds: How long each step took.
        history: A dictionary for each finished epoch of head and network.
        resumed: Whether a backup was found.

    Raises:
        ValueError: As `training_settings`.
    """

    STEPS = ("data", "split", "network", "backup", "head", "fine-tuning", "saving", "test")

    def __init__(self, namespace: Mapping):
        self._namespace = namespace
        self.settings = training_settings(namespace)
        self.seconds, self.history, self.resumed = {}, [], False
        model_path = path_setting("MODEL_PATH", self.settings["MODEL_PATH"])
        self._folder = model_path.with_suffix(".backup")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure a step; it counts only if nothing failed.

        Raises:
            MixedRuns: Settings were changed, or steps before this one are not finished.
        """
        before = self.STEPS[: self.STEPS.index(name)]
        changed = [key for key, value in self.settings.items() if self._namespace[key] != value]
        missing = [step for step in before if step not in self.seconds]
        if changed or missing:
            why = f"{', '.join(changed)} changed" if changed else f"not done: {', '.join(missing)}"
            raise MixedRuns(
                f"The cells above do not belong to this one ({why}). Select the cell below "
                'Settings and choose "Run Selected Cell and All Below" in the menu Run.'
            )
        for later in self.STEPS[len(before) + 1 :]:
            self.seconds.pop(later, None)
        start = time.perf_counter()
        try:
            yield
        except KeyboardInterrupt:
            print("Stopped. Run this cell again to go on; what is finished is kept.")
            raise
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start

    def open_backup(self, **inputs) -> None:
        """Find the backup of an interrupted run, or move that of another run aside.

        Args:
            inputs: What else must be equal, such as a checksum of the data.
        """
        self.history, self.resumed = [], False
        present = json.loads(json.dumps(self.settings | inputs))
        file = self._folder / "settings.json"
        finished = self._saved_epoch()
        if file.is_file() and finished is not None:
            saved = json.loads(file.read_text("utf-8"))
            changed = [key for key, value in present.items() if saved.get(key) != value]
            if not changed:
                rows = pd.read_csv(self._folder / "history.csv").to_dict("records")
                heads = [row for row in rows if row["phase"] == "head"]
                self.history, self.resumed = rows[: len(heads) + finished], True
                print(f"An interrupted run was found: it goes on after {finished} epochs.")
                return
            aside = self._folder.with_suffix(".old-backup")
            instead = " in place of an older one" if aside.exists() else ""
            shutil.rmtree(aside, ignore_errors=True)
            self._folder.rename(aside)
            print(f"An interrupted run had other {', '.join(changed)}.")
            print(f"Its backup is now in {aside}{instead}; delete it if you do not need it.")
        shutil.rmtree(self._folder, ignore_errors=True)
        with atomic_path(file) as path:
            path.write_text(json.dumps(present, indent=2), "utf-8")

    def _weights(self, epoch: int | str) -> Path:
        """Return where weights and optimizer are saved after so many finished epochs."""
        return self._folder / f"epoch-{epoch}.weights.h5"

    def _saved_epoch(self) -> int | None:
        """Return after how many finished epochs the newest file in the backup was saved."""
        names = (file.name for file in self._folder.glob(self._weights("*").name))
        return max((int(name.split(".")[0][6:]) for name in names), default=None)

    @property
    def finished(self) -> int:
        """Epochs of fine-tuning that are finished."""
        return sum(row["phase"] == "fine-tuning" for row in self.history)

    def load_backup(self, model: keras.Model) -> None:
        """Load weights and optimizer as they were after the last finished epoch.

        Raises:
            ValueError: The backup is damaged or gone.
        """
        file = self._weights(self.finished)
        if not self._folder.exists() and self.finished == len(self.settings["IMAGE_SIZES"]):
            return  # the run is over: the model is as it should be
        try:
            model.load_weights(file)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"The backup {file} is damaged or gone ({error}). Delete {self._folder} and run "
                "the cells again from Settings on."
            ) from error

    def save_backup(self, model: keras.Model, rows: Sequence[dict]) -> None:
        """Add epochs to the history and save it, the weights and the optimizer.

        Raises:
            RuntimeError: A loss is not a number.
            OSError: The disk is full. The backup of the epoch before is still there.
        """
        if not all(np.isfinite(row["loss"]) for row in rows):
            raise RuntimeError(
                "The loss became nan. Lower LEARNING_RATE (or HEAD_LEARNING_RATE) and run the "
                "cells again from Settings on."
            )
        history, old = [*self.history, *rows], self._saved_epoch()
        with atomic_path(self._folder / "history.csv") as path:
            pd.DataFrame(history).to_csv(path, index=False)
        finished = sum(row["phase"] == "fine-tuning" for row in history)
        with atomic_path(self._weights(finished)) as path:
            model.save_weights(path)
        self.history = history
        if old not in (None, finished):
            self._weights(old).unlink()

    def record(self, **more) -> dict:
        """Return settings, seconds, processor and versions, and whatever else is given."""
        seconds = self.seconds | {
            "fine-tuning": sum(r["seconds"] for r in self.history if r["phase"] == "fine-tuning")
        }
        packages = ("tensorflow", "keras", "numpy", "pandas", "scikit-learn", "scipy", "rasterio")
        return {
            "parameters": self.settings,
            **more,
            "resumed": self.resumed,
            "seconds": {step: round(value, 1) for step, value in seconds.items()},
            "processor": processor(),
            "cores": os.cpu_count(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in packages},
        }

    def delete_backup(self) -> None:
        """Delete the backup of a run that is over."""
        shutil.rmtree(self._folder, ignore_errors=True)


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def save_model(model: keras.Model, path: str | Path, tiles: np.ndarray) -> keras.Model:
    """Save a model, compressed, completely or not at all; return it as loaded from the file.

    Args:
        model: The model.
        path: Ends in `.keras`. A file that is there is replaced at the end.
        tiles: Some, `uint8` `(n, 64, 64, 3)`: the loaded model must answer them as `model` does.

    Raises:
        RuntimeError: It does not.
        OSError: The disk is full.
    """
    with atomic_path(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary) as plain:
            content = {name: plain.read(name) for name in plain.namelist()}
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as compressed:
            for name, data in content.items():
                compressed.writestr(name, data)
        saved = keras.saving.load_model(temporary)
        difference = np.abs(saved.predict(tiles, verbose=0) - model.predict(tiles, verbose=0)).max()
        if not difference < 1e-4:
            raise RuntimeError(f"What was saved answers differently: {path} was not replaced.")
    return saved


def round_weights(weights: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Round `float32` weights to the 16 bits of `bfloat16`: compressed, half as large."""
    return [tf.cast(tf.cast(weight, "bfloat16"), "float32").numpy() for weight in weights]


# ---------------------------------------------------------------- save, judge and plot


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path to write to; rename it to `path` only if nothing failed.

    The folder of `path` is made if need be.

    Raises:
        OSError: The disk is full, or the folder cannot be written to. A file that was at `path`
            is still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OSError(
            f"{path} could not be written ({error}). Make room, or choose another folder in the "
            "settings."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
        if temporary.stat().st_size > MAX_FIGURE_BYTES:  # many tiles: 256 colours have to do
            with Image.open(temporary) as image:
                image.convert("RGB").quantize(256).save(temporary, optimize=True)
    plt.close(figure)
    return display.Image(path, alt=alt)


def save_json(content: dict, path: str | Path) -> None:
    """Write a dictionary as JSON, completely or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=float) + "\n", "utf-8")


def save_table(table: pd.DataFrame, path: str | Path, decimals: int = 4, **options) -> None:
    """Write a table as CSV, completely or not at all."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, float_format=f"%.{decimals}f", **{"index": False} | options)


@tf.autograph.experimental.do_not_convert  # else this file is read again in the middle of a run
def turn_tiles(tiles: tf.Tensor, which: tf.Tensor) -> tf.Tensor:
    """Put each tile into one of the eight symmetries of the square.

    Args:
        tiles: `(n, 64, 64, 3)`.
        which: Whole numbers `(n,)` from 0, as it is, to 7: the bits say whether to mirror it,
            put it upside down, and transpose it.
    """
    left_right, up_down, transpose = (
        tf.reshape(which // bit % 2 == 1, (-1, 1, 1, 1)) for bit in (1, 2, 4)
    )
    tiles = tf.where(left_right, tiles[:, :, ::-1], tiles)
    tiles = tf.where(up_down, tiles[:, ::-1], tiles)
    return tf.where(transpose, tf.transpose(tiles, [0, 2, 1, 3]), tiles)


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


def wilson_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return both ends of the interval of a proportion by Wilson (1927).

    It holds near 1 and for few samples, too.

    Raises:
        ValueError: `correct` is not between 0 and `total`, or `total` is 0.
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"{correct} of {total} is not a proportion.")
    interval = binomtest(int(correct), int(total)).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def plot_tiles(
    images: Sequence,
    titles: Sequence[str],
    columns: int = 10,
    correct: Sequence | None = None,
    inches: float = 1.2,
) -> Figure:
    """Show images in a grid, each below its title.

    Args:
        images: Each `uint8`, shape `(height, width, 3)`.
        titles: One an image; may have several lines.
        columns: Images in a row.
        correct: If given, frames images blue (right) or orange and dashed (wrong).
        inches: Width of an image.
    """
    rows = -(-len(images) // columns)
    lines = max(title.count("\n") + 1 for title in titles)
    row_inches = inches * len(images[0]) / len(images[0][0]) + 0.17 * lines
    size = (columns * inches, rows * row_inches)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(images) :]:
        axis.set_visible(False)
    for index, (axis, image, title) in enumerate(zip(axes.flat, images, titles, strict=False)):
        axis.imshow(image)
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=8, pad=5, parse_math=False)
        axis.spines[:].set_visible(correct is not None)
        if correct is not None:
            color, style = ("#0072B2", "-") if correct[index] else ("#E69F00", (0, (1.5, 0.8)))
            axis.spines[:].set(linewidth=4, color=color, linestyle=style, capstyle="butt")
    return figure


# ---------------------------------------------------------------- a finished run


class EndOfNotebook(Exception):
    """Raised to leave out the cells below: Jupyter shows its text, papermill sees no fault."""

    def __str__(self) -> str:  # papermill looks for a SystemExit without a text
        return ""

    def _render_traceback_(self) -> list[str]:  # Jupyter asks for this
        return [str(argument) for argument in self.args]


EndOfNotebook.__name__ = "SystemExit"


def open_model(path: str | Path) -> keras.Model:
    """Load a model of Training.ipynb: `uint8` tiles in, probabilities `(n, 10)` out.

    Raises:
        FileNotFoundError: There is no file.
        ValueError: The file is damaged, from another version, brings code, or is another model.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no model at {path}. Run Training.ipynb first: it saves one there."
        )
    try:
        model = keras.saving.load_model(path)
        shapes = model.input_shape[1:], model.output_shape[1:]
    except Exception as error:  # Keras raises nearly every kind
        raise ValueError(
            f"{path} cannot be loaded by Keras {keras.__version__} ({error}). It is damaged, from "
            "another version, or not a model of Training.ipynb. Restore it or run Training.ipynb."
        ) from error
    expected = (TILE_SIZE, TILE_SIZE, 3), (len(CLASSES),)
    if shapes != expected:
        raise ValueError(
            f"{path} takes {shapes[0]} and answers {shapes[1]} instead of {expected[0]} and "
            f"{expected[1]}: it is not a model of Training.ipynb. Choose another in MODEL_PATH."
        )
    return model


def read_run(results_dir: str | Path, model_path: str | Path) -> tuple[pd.DataFrame, dict]:
    """Read the split and the record of the run that a model comes from.

    Returns:
        The table of `split.csv` (`file`, `label`, `split`) and the content of `run.json`.

    Raises:
        FileNotFoundError: Files of the run are missing.
        ValueError: They are damaged, or split and model are not those of one run.
    """
    names = ("split.csv", "run.json", "test_predictions.csv", "training_colours.npy")
    paths = [Path(results_dir, name) for name in names]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"Not there: {', '.join(missing)}. Run Training.ipynb first, or restore what it wrote."
        )
    split_csv, run_json = paths[:2]
    again = "Restore the files of one run, or run Training.ipynb again."
    try:
        split = pd.read_csv(split_csv)
        record = json.loads(run_json.read_text("utf-8"))
        digest, test_tiles = split_digest(split), record["metrics"]["test_tiles"]
        expected_split, expected_model = record["split_sha256"], record["model_sha256"]
        record["parameters"]["IMAGES_PER_CLASS"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{split_csv} or {run_json} is damaged ({error!r}). {again}") from error
    if digest != expected_split or (split["split"] == "test").sum() != test_tiles:
        raise ValueError(f"{split_csv} is not the split that {run_json} was written with. {again}")
    if pooch.file_hash(model_path) != expected_model:
        raise ValueError(f"{model_path} is not the model that {run_json} was written with. {again}")
    return split, record


def check_tiles(tiles: pd.DataFrame, split: pd.DataFrame, record: dict) -> None:
    """Check that the tiles found (`list_tiles`) are those of a run's split (`read_run`).

    Raises:
        ValueError: Tiles of the split are missing, or there are others; says how many and some.
    """
    missing = sorted(set(split["file"]) - set(tiles["file"]))
    extra = sorted(set(tiles["file"]) - set(split["file"]))
    if record["parameters"]["IMAGES_PER_CLASS"] is not None:  # a quick look uses only some
        extra = []
    if missing or extra:
        raise ValueError(
            f"The data found do not match the split: {len(missing)} tiles of the split are missing "
            f"{missing[:5]}, {len(extra)} tiles are not in the split {extra[:5]}. Use the data set "
            "of the training run."
        )


# ---------------------------------------------------------------- classify images of any size


class Picture(NamedTuple):
    """An image in memory, and where on Earth it lies.

    Attributes:
        pixels: `uint8` `(height, width, 3)`, RGB, 0, 0, 0 where there are no data.
        name: That of its file, or another, for messages.
        crs: Coordinate reference system, or None.
        transform: From columns and rows of pixels to coordinates x and y, or None.
        cautions: Sentences that say what makes answers doubtful.
    """

    pixels: np.ndarray
    name: str = "image"
    crs: rasterio.crs.CRS | None = None
    transform: rasterio.Affine | None = None
    cautions: tuple[str, ...] = ()


def shown_name(path: str | Path) -> str:
    """Return a path as text that can be printed, also where its name is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def list_images(images: str | Path | Sequence[str | Path] | None) -> list[Path]:
    """List image files: `images` itself, those in a folder, or all of these for a list of paths.

    Returns:
        Files in order; those in a folder that end in one of `IMAGE_SUFFIXES`. None of them twice.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A folder holds no image.
    """
    if images in (None, ""):
        return []
    if isinstance(images, (list, tuple)):
        return list(dict.fromkeys(path for entry in images for path in list_images(entry)))
    path = path_setting("IMAGES", images)
    if path.is_file():
        return [path]
    place = shown_name(path.absolute())
    if not path.exists():
        raise FileNotFoundError(f"IMAGES: {place} does not exist. Give an image or a folder.")
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    found = [path / name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    found = [entry for entry in found if not entry.is_dir()]
    if not found:
        other = ", ".join(map(shown_name, names[:5]))
        holds = f"holds no image, only {other}" if names else "is empty"
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise ValueError(f"IMAGES: {place} {holds}. Put images into it that end in {suffixes}.")
    return found


def output_name(images: str | Path | Sequence[str | Path]) -> str:
    """Return a name for what is made of files: the first one's, and a digest of where they are."""
    images = images if isinstance(images, (list, tuple)) else [images]
    paths = [path_setting("IMAGES", image).resolve() for image in images]
    name = shown_name(paths[0].name).replace("\\", "_")[:40].strip(". ")
    return f"{name}-{hashlib.sha256(b'|'.join(map(os.fsencode, paths))).hexdigest()[:8]}"


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the names of files, with a digest where they are alike, too long or not UTF-8."""
    count = Counter(path.name.casefold() for path in paths)  # some systems do not tell a from A
    return [
        path.name
        if count[path.name.casefold()] == 1
        and len(os.fsencode(path.name)) < 150
        and path.name == shown_name(path.name)
        else output_name(path)
        for path in paths
    ]


def check_settings(
    samples: int = 1, seed: int = 0, stride: int = TILE_SIZE, levels: Sequence[float] | None = None
) -> None:
    """Raise a ValueError that names the setting of Inference.ipynb that cannot work, if any."""
    for name, value, least, most in (
        ("SAMPLES", samples, 1, 400),
        ("SEED", seed, 0, 2**32 - 1),
        ("STRIDE", stride, 1, TILE_SIZE),
    ):
        if not isinstance(value, int) or not least <= value <= most:
            raise ValueError(
                f"{name} must be a whole number from {least} to {most}, not {value!r}."
            )
    check_levels(levels)


def check_levels(levels: Sequence[float] | None) -> tuple[float, float] | None:
    """Return levels as two numbers, or None for None.

    Raises:
        ValueError: They are not two finite numbers, the first one smaller.
    """
    if levels is None:
        return None
    with suppress(TypeError, ValueError):
        black, white = () if isinstance(levels, str) else map(float, levels)
        if -np.inf < black < white < np.inf:
            return black, white
    raise ValueError(f"LEVELS must be two numbers, the first one smaller, not {levels!r}.")


def read_image(path: str | Path, levels: Sequence[float] | None = None) -> Picture:
    """Read an image, the way up that a viewer shows it.

    Args:
        path: JPEG, PNG, TIFF (its first page) or JPEG 2000: RGB, grey or palette, with or without
            transparency, of any real numbers.
        levels: The values that become 1 and 255; needed unless an image has 8 or 16 bits and no
            sign. None is `LEVELS` for 16 bits. Images of 8 bits are colours and stay as they are.

    Returns:
        The picture. No data are pixels that are transparent, masked, declared so by the file, not
        finite or, where `levels` apply, 0 in all bands.

    Raises:
        ValueError: The file cannot be read, is too large, needs levels or has other bands.
    """
    levels = check_levels(levels)
    path = Path(path)
    with _reasons(path), rasterio.Env(**GDAL_OPTIONS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no coordinates; many pixels
        stale = _stale_mask(path)
        siblings = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"} if stale else {}
        with rasterio.Env(**siblings), rasterio.open(path) as source:
            if source.driver not in DRIVERS:
                raise rasterio.errors.RasterioIOError(f"{source.driver} is not read")
            if source.height * source.width > MAX_PIXELS:
                size = f"{source.width:,}x{source.height:,}"
                raise ValueError(f"{size} pixels are more than {MAX_PIXELS:,}; cut it into parts")
            if source.driver in ("JPEG", "PNG") and source.dtypes[0] == "uint8":
                pixels, orientation = _decode_with_pillow(source, path)
            else:
                pixels, orientation = _decode_with_gdal(source, levels), _tiff_orientation(path)
            crs, transform = source.crs, source.transform if source.crs else None
    if crs is None and orientation in TURNS:  # programs for maps do not turn
        pixels = np.asarray(Image.fromarray(pixels).transpose(TURNS[orientation]))
    picture = Picture(pixels, shown_name(path.name), crs, transform)
    cautions = [f"the mask {path.name}.msk is not of this image: not used"] if stale else []
    metres = pixel_metres(picture) if crs else (10, 10)
    if not all(8 <= size <= 12 for size in metres):
        found = " x ".join(f"{float(f'{size:.2g}'):g}" for size in metres)
        found = "unknown size" if np.isnan(metres).any() else f"{found} m"
        cautions.append(f"pixels of {found}, the network knows only those of 10 m")
    return picture._replace(cautions=tuple(cautions))


@contextmanager
def _reasons(path: Path) -> Iterator[None]:
    """Turn what the decoders raise into one ValueError with the file's name and the true reason."""
    try:
        yield
    except rasterio.errors.RasterioError as error:
        cause = error.__cause__ or error
        if "previous exception" not in str(error):  # it could not even be opened
            reason = f"not a readable JPEG, PNG, TIFF or JPEG 2000 image ({error})"
        elif "emory" in f"{type(cause).__name__} {cause}":
            reason = f"needs more memory than there is ({cause})"
        else:
            reason = f"damaged or incomplete ({cause})"
    except MemoryError:
        reason = "needs more memory than there is"
    except UnicodeEncodeError:
        reason = "its name is not UTF-8; rename it"
    except OSError as error:  # with a number: from the system, otherwise from Pillow
        reason = error.strerror if error.errno else f"damaged or incomplete ({error})"
    except (SyntaxError, struct.error, zlib.error) as error:
        reason = f"damaged or incomplete ({error})"
    except (Image.DecompressionBombError, ValueError) as error:
        reason = str(error)
    else:
        return
    raise ValueError(f"{shown_name(path)}: {reason}")


def _stale_mask(path: Path) -> bool:
    """Tell whether the mask beside a file is older, or of another size: left from another file."""
    mask = path.with_name(path.name + ".msk")
    if not mask.is_file():
        return False
    with rasterio.open(path) as source, rasterio.open(mask) as beside:
        same_size = source.shape == beside.shape
    return not same_size or mask.stat().st_mtime < path.stat().st_mtime - 1  # s


def _decode_with_pillow(source: rasterio.DatasetReader, path: Path) -> tuple[np.ndarray, int]:
    """Return the pixels of a JPEG or PNG, as `load_tiles` decodes them, and its orientation."""
    with Image.open(path, formats=("JPEG", "PNG")) as image:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        known = np.ones(source.shape, bool)
        if image.has_transparency_data:
            rgba = np.asarray(image.convert("RGBA"))
            pixels, known = rgba[..., :3].copy(), rgba[..., 3] > 0
        else:
            pixels = np.array(image.convert("RGB"))
    if source.mask_flag_enums[0] == [MaskFlags.per_dataset]:  # inside a JPEG, or beside
        known &= source.read_masks(1) > 0
    elif source.nodata is not None and source.colorinterp[0] != ColorInterp.palette:
        known &= (pixels != source.nodata).any(axis=-1)
    pixels[~known] = 0
    return pixels, orientation


def _decode_with_gdal(source: rasterio.DatasetReader, levels: Sequence[float] | None) -> np.ndarray:
    """Return the pixels of any other image, read in strips of whole blocks."""
    bands, kind = _colour_bands(source), source.dtypes[0]
    if kind.startswith("complex"):
        raise ValueError("complex numbers, which are no colours")
    if levels is None and kind not in ("uint8", "uint16"):
        raise ValueError(_advice_on_levels(source, bands))
    pixels = np.empty((*source.shape, 3), np.uint8)
    block = source.block_shapes[0][0]
    step = min(max(block, 256 // block * block), 2048)
    for top in range(0, source.height, step):
        window = Window(0, top, source.width, min(step, source.height - top))
        pixels[top : top + step] = _read_strip(source, bands, window, levels or LEVELS)
    return pixels


def _colour_bands(source: rasterio.DatasetReader) -> list[int]:
    """Return which bands are red, green and blue, or the one that is grey or a palette's index."""
    roles = source.colorinterp
    if set(COLOUR_ROLES) <= set(roles):  # in whatever order, with others or without
        return [roles.index(role) + 1 for role in COLOUR_ROLES]
    bands = [band for band, role in enumerate(roles, 1) if role != ColorInterp.alpha]
    if len(bands) not in (1, 3):
        raise ValueError(f"{len(bands)} bands instead of 3 (red, green, blue) or 1 (grey, palette)")
    return bands


def _read_strip(
    source: rasterio.DatasetReader, bands: list[int], window: Window, levels: Sequence[float]
) -> np.ndarray:
    """Return a part of an image as `uint8` `(h, w, 3)`, 0 where there are no data."""
    values = source.read(bands, window=window)
    known = source.read_masks(bands, window=window).any(axis=0)
    for band, role in enumerate(source.colorinterp, 1):
        if role == ColorInterp.alpha:
            known &= source.read(band, window=window) > 0
    if source.colorinterp[0] == ColorInterp.palette:
        palette = np.zeros((2**16, 4), np.uint8)
        for index, colour in source.colormap(1).items():
            palette[index] = colour
        strip, known = palette[values[0], :3], known & (palette[values[0], 3] > 0)
    else:
        tags = source.tags(ns="IMAGE_STRUCTURE") | source.tags(bands[0], ns="IMAGE_STRUCTURE")
        most = 2 ** int(tags.get("NBITS", 8 * values.itemsize)) - 1
        if "MINISWHITE" in tags and values.dtype.kind == "u":
            values = most - values
        if values.dtype != np.uint8:
            known &= values.any(axis=0)
        if values.dtype.kind == "f":
            known &= np.isfinite(values).all(axis=0)
        strip = np.stack([_to_8_bits(value, most, levels) for value in values], axis=-1)
    return strip * known[..., np.newaxis]


def _to_8_bits(values: np.ndarray, most: int, levels: Sequence[float]) -> np.ndarray:
    """Return values as colours: up to 8 bits from 0 to 255, others from `levels` as 1 to 255."""
    if values.dtype == np.uint8:
        return values if most == 255 else values * (255 // most)
    if values.dtype == np.uint16:  # looked up, which is faster
        return _to_8_bits(np.arange(2**16), most, levels)[values]
    return np.interp(np.nan_to_num(values), levels, (1, 255)).round().astype(np.uint8)


def _advice_on_levels(source: rasterio.DatasetReader, bands: Sequence[int]) -> str:
    """Say what values the middle of an image has, and which setting they need."""
    height, width = source.shape
    middle = Window(max(0, width // 2 - 500), max(0, height // 2 - 500), 1000, 1000)
    values = source.read(bands, window=middle.intersection(Window(0, 0, width, height)))
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, (1, 99)) if values.size else (np.nan, np.nan)
    return (
        f"{source.dtypes[0]} values, in its middle mostly {low:.4g} to {high:.4g}. Set LEVELS to "
        "what becomes black and white: [0, 0.275] for reflectance, [0, 2750] for 1/10,000 of it"
    )


def _tiff_orientation(path: Path) -> int:
    """Return which way up a TIFF is to be shown: 1 to 8, as in EXIF."""
    with path.open("rb") as file:
        header = file.read(8)
        if header[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return 1
        header += file.read(8) if 43 in header[2:4] else b""
        directory = ImageFileDirectory_v2(header)
        file.seek(directory.next)
        directory.load(file)
        return directory.get(ExifTags.Base.Orientation, 1)


def coordinates(picture: Picture, columns: ArrayLike, rows: ArrayLike) -> np.ndarray:
    """Return x and y, `(2, ...)`, of places in a picture, in pixels from its upper left corner."""
    a, b, c, d, e, f = picture.transform[:6]
    columns, rows = np.asarray(columns), np.asarray(rows)
    return np.array([a * columns + b * rows + c, d * columns + e * rows + f])


def pixel_metres(picture: Picture) -> tuple[float, float]:
    """Return width and height, in m, of the middle pixel of a picture with coordinates.

    They are NaN where its place on Earth cannot be computed.
    """
    height, width = picture.pixels.shape[:2]
    x, y = coordinates(picture, width / 2 + np.array([0, 1, 0]), height / 2 + np.array([0, 0, 1]))
    try:
        longitude, latitude = np.radians(rasterio.warp.transform(picture.crs, "EPSG:4326", x, y))
    except Exception:  # GDAL raises many kinds
        return np.nan, np.nan
    east = (longitude[1:] - longitude[0] + np.pi) % (2 * np.pi) - np.pi
    north = latitude[1:] - latitude[0]
    return tuple((6_371_000 * np.hypot(east * np.cos(latitude[0]), north)).tolist())


def tile_starts(size: int, stride: int = TILE_SIZE) -> np.ndarray:
    """Return where tiles begin along a side of `size` pixels; the last one ends at the border."""
    return np.unique(np.r_[0 : size - TILE_SIZE : stride, size - TILE_SIZE])


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
        `blue`: its mean colour, 0 to 255. If the image has coordinates, `x` and `y`: the tile's
        centre.

    Raises:
        ValueError: The image cannot be read or is smaller than a tile; or the stride is impossible.
    """
    check_settings(stride=stride, levels=levels)
    if isinstance(image, (str, Path)):
        image = read_image(image, levels)
        for caution in image.cautions:
            warnings.warn(f"{image.name}: {caution}", stacklevel=2)
    picture = image if isinstance(image, Picture) else Picture(image)
    height, width = picture.pixels.shape[:2]
    if min(height, width) < TILE_SIZE:
        raise ValueError(f"{picture.name}: {width}x{height} pixels, smaller than a tile of 64x64")
    tops, lefts = tile_starts(height, stride), tile_starts(width, stride)
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
        rows, columns = np.transpose(starts) + TILE_SIZE / 2
        table["x"], table["y"] = coordinates(picture, columns, rows)
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
    for step, first in enumerate(range(0, len(starts), BATCH_SIZE)):
        batch = starts[first : first + BATCH_SIZE]
        tiles = np.stack(
            [picture.pixels[top : top + TILE_SIZE, left : left + TILE_SIZE] for top, left in batch]
        )
        red, green, blue = np.moveaxis(tiles, -1, 0)
        lit = np.count_nonzero(red | green | blue, axis=(1, 2))  # pixels that have data
        sums = tiles.sum(axis=1, dtype=np.uint16).sum(axis=1, dtype=np.uint32)  # fast types
        colours[first : first + len(batch)] = sums / np.maximum(lit, 1)[:, None]
        known = np.flatnonzero(lit >= TILE_SIZE**2 / 2)
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


def write_land_cover(path: str | Path, table: pd.DataFrame, picture: Picture, stride: int) -> None:
    """Write a land-cover map that programs for maps (QGIS, ArcGIS, GDAL) open.

    Args:
        path: GeoTIFF to write: 0 for no data, 1 to 10 for `CLASSES`, with colours and names. The
            probabilities go into a second file, with `_probability` for `_land_cover` in its name.
        table: Of `classify_image`, with this `stride`.
        picture: The image, with coordinates.
        stride: Pixels of the image that become one pixel of the map.

    Raises:
        OSError: A file could not be written.
    """
    path, (height, width) = Path(path), picture.pixels.shape[:2]
    rows, columns = _cell_centres(height, stride), _cell_centres(width, stride)
    by_place = table.set_index(["top", "left"])
    tops, lefts = by_place.index.unique("top"), by_place.index.unique("left")
    row = (np.searchsorted(tops, rows, side="right") - 1).clip(0)
    column = (np.searchsorted(lefts, columns, side="right") - 1).clip(0)
    place = np.add.outer(row * len(lefts), column)  # the table's row at each cell's centre
    a, b, _, d, e, _ = (stride * number for number in picture.transform[:6])
    x, y = coordinates(picture, columns[0] - stride / 2, rows[0] - stride / 2)
    profile = {
        "driver": "GTiff", "count": 1, "height": len(rows), "width": len(columns),
        "crs": picture.crs, "compress": "deflate", "transform": rasterio.Affine(a, b, x, d, e, y),
    }  # fmt: skip
    codes = table["label"].map({name: code for code, name in enumerate(CLASSES, 1)}).fillna(0)
    colours = 255 * to_rgba_array(["none", *CLASS_COLOURS.values()])
    _write_band(path, codes.to_numpy(np.uint8)[place], 0, profile, colours.astype(int).tolist())
    second = path.with_name(path.name.replace("_land_cover", "_probability"))
    _write_band(second, table["probability"].to_numpy(np.float32)[place], np.nan, profile)
    names = "".join(f"<Category>{name}</Category>" for name in (NO_DATA, *CLASSES))
    with atomic_path(f"{path}.aux.xml") as temporary:  # where GDAL keeps the names of classes
        temporary.write_text(
            f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames>'
            "</PAMRasterBand></PAMDataset>"
        )


def _write_band(
    path: Path, values: np.ndarray, nodata: float, profile: dict, colours: Sequence = ()
) -> None:
    """Write a GeoTIFF with one band, in memory first: GDAL does not say that a disk is full."""
    with MemoryFile() as memory, atomic_path(path) as temporary:
        with memory.open(dtype=values.dtype, nodata=nodata, **profile) as file:
            file.write(values, 1)
            if colours:
                file.write_colormap(1, dict(enumerate(colours)))
                file.update_tags(1, **{f"class_{n}": name for n, name in enumerate(CLASSES, 1)})
        temporary.write_bytes(memory.read())


def _cell_centres(size: int, stride: int) -> np.ndarray:
    """Return the middles of a map's cells along a side, in pixels, in step with those of tiles.

    There is a cell for every pixel: the first and the last one may reach beyond the border.
    """
    middle = TILE_SIZE / 2
    before = np.ceil((middle - stride / 2) / stride)
    return np.arange(middle - before * stride, size + stride / 2, stride)


def figure_text(text: str, longest: int = 40) -> str:
    """Return outside text as a figure can show it: cut, and escaped where the font has no glyph."""
    glyphs = get_font(findfont(FontProperties())).get_charmap()
    text = "".join(c if ord(c) in glyphs else ascii(c)[1:-1] for c in text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


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
    x = np.r_[0, np.unique(table["left"] + table["width"])]
    y = np.r_[0, np.unique(table["top"] + table["height"])]
    grid = len(y) - 1, len(x) - 1
    code = table["label"].map({name: code for code, name in enumerate(CLASSES)})
    code, probability = (values.to_numpy().reshape(grid) for values in (code, table["probability"]))
    headings = [figure_text(title, 90), *(fill(f"Careful: {text}.", 100) for text in cautions)]
    proportion = np.clip(y[-1] / x[-1], 0.3, 3)  # of what is drawn; a very long image is squeezed
    size = 12, 3.6 * proportion + 2.1 + 0.3 * len(headings)  # inches
    figure, axes = plt.subplots(1, 3, figsize=size, layout="compressed", sharey=True)
    step = -(-max(image.shape) // 1000)
    small = np.asarray(Image.fromarray(image).reduce(step)) if step > 1 else image
    grey = np.repeat(0.6 + small.mean(axis=-1, keepdims=True) / 640, 3, axis=-1)
    grey[~small.any(axis=-1)] = 1  # no data
    shown = {"image": small, "land cover": grey, "probability of that class": grey}
    for axis, (heading, picture) in zip(axes, shown.items(), strict=True):
        axis.imshow(picture, extent=(0, x[-1], y[-1], 0))
        axis.set(title=heading, xlabel="pixels", aspect=proportion * x[-1] / y[-1])
        axis.grid(False)
    axes[0].set_ylabel("pixels")
    colours = ListedColormap(list(CLASS_COLOURS.values()))
    style = {"cmap": colours, "vmin": -0.5, "vmax": len(CLASSES) - 0.5, "alpha": MAP_ALPHA}
    axes[1].pcolormesh(x, y, code, **style)
    mesh = axes[2].pcolormesh(x, y, 100 * probability, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(mesh, cax=axes[2].inset_axes([1.04, 0, 0.05, 1]), label="%")
    handles = [
        Patch(fc=CLASS_COLOURS[name], alpha=MAP_ALPHA, label=f"{name} {share:.1%}")
        for name, share in area_shares(table).items()
    ]
    if "unusual" in table and table["unusual"].any():
        handles.append(_hatch_unusual(axes[1], x, y, table))
    place = {"loc": "outside lower center", "ncols": 5, "frameon": False}
    figure.legend(handles=handles, title="share of the area", **place)
    style = {"parse_math": False, "color": "#a50026" if cautions else "black"}
    figure.suptitle("\n".join(filter(None, headings)), **style)
    return figure


def _hatch_unusual(axis: Axes, x: np.ndarray, y: np.ndarray, table: pd.DataFrame) -> Patch:
    """Grey and hatch the tiles with unusual colours; return what stands for them in the legend."""
    unusual = table["unusual"].to_numpy(float).reshape(len(y) - 1, len(x) - 1)
    masked = np.ma.masked_equal(unusual, 0)
    axis.pcolormesh(x, y, masked, cmap=ListedColormap(["#dddddd"]), alpha=0.75)
    axis.pcolor(
        x, y, masked, cmap=ListedColormap(["none"]), hatch="////", edgecolor="#555555", linewidth=0
    )
    style = {"fc": "#dddddd", "ec": "#555555", "hatch": "////", "linewidth": 0}
    area = table["height"] * table["width"]
    share = area[table["unusual"]].sum() / area[table["label"] != NO_DATA].sum()
    return Patch(**style, label=f"unusual colours {share:.1%}")
