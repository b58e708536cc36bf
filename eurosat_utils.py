"""Load, split and plot EuroSAT (RGB): what Training.ipynb and Inference.ipynb share.

The functions follow the data: fetch, list, load, split, sample, judge, plot.
Plot functions take data and return a figure. Importing this module only silences start-up notes.
"""

import hashlib
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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import psutil
import seaborn as sns
from IPython.display import Image as DisplayedImage
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, log_loss
from sklearn.model_selection import train_test_split

# Start-up notes would fill every notebook; TensorFlow writes its own past Python and its log level.
warnings.filterwarnings("ignore", "IProgress not found")  # tqdm draws a plain bar without ipywidgets
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_stderr, _null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
os.dup2(_null, 2)
try:
    import keras
    import pooch
finally:
    os.dup2(_stderr, 2)
    os.close(_stderr)
    os.close(_null)

# Helber et al. 2019, "EuroSAT", IEEE JSTARS 12(7), doi:10.1109/JSTARS.2019.2918242
CLASSES = (
    "AnnualCrop",
    "Forest",
    "HerbaceousVegetation",
    "Highway",
    "Industrial",
    "Pasture",
    "PermanentCrop",
    "Residential",
    "River",
    "SeaLake",
)
TILE_SIZE = 64  # pixels; one pixel is 10 m on the ground
ARCHIVES = {  # file name: (URL, SHA-256); the same tiles, packed differently
    "EuroSAT_RGB.zip": (
        "https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip",
        "b4f5b234ecb7d7ff9c6cddb046543b4717c53fd6e9815be6c0e80cc614f51b90",
    ),
    "EuroSAT.zip": (
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
        "8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
    ),
}
USER_AGENT = "eurosat-notebooks/1.0"  # Zenodo turns generic Python clients away
MAX_FIGURE_BYTES = 400_000  # bytes; a page with a dozen such figures still opens fast
TIMEOUT = 60  # seconds without an answer before the next source is tried


# ---------------------------------------------------------------- fetch and load


def fetch_eurosat(data_dir: str | Path = "data") -> Path:
    """Find EuroSAT below a folder; extract or download it only if it is not there.

    Args:
        data_dir: Folder that holds the ten class folders (directly, in `EuroSAT_RGB/`
            or in `2750/`), or one of the published archives, or nothing yet.

    Returns:
        The folder that contains the class folders.

    Raises:
        ValueError: An archive that is present cannot be extracted.
        FileNotFoundError: Nothing is present and no download worked.
    """
    data_dir = Path(data_dir).expanduser()
    if (folder := _class_root(data_dir)) is not None:
        return folder
    for name in ARCHIVES:
        if (data_dir / name).is_file():
            return _extract(data_dir / name)
    failures = []
    for name, (url, sha256) in ARCHIVES.items():
        downloader = pooch.HTTPDownloader(progressbar=True, headers={"User-Agent": USER_AGENT}, timeout=TIMEOUT)
        try:
            pooch.retrieve(url, f"sha256:{sha256}", name, data_dir, downloader=downloader)
        except (OSError, ValueError) as error:  # network or disk; wrong checksum
            failures.append(f"  {url}\n    {type(error).__name__}: {error}")
        else:
            return _extract(data_dir / name)
    raise FileNotFoundError(
        f"EuroSAT is not in {data_dir.absolute()} and could not be downloaded:\n"
        + "\n".join(failures)
        + f"\nDownload one of these files with a browser and put it, as {' or '.join(ARCHIVES)}, into "
        f"{data_dir.absolute()}; then run this cell again."
    )


def _class_root(folder: Path) -> Path | None:
    """Return where the class folders are: in `folder`, below an archive's root name, or below two of it."""
    for root in (folder / "EuroSAT_RGB", folder / "2750", folder, folder / "EuroSAT_RGB" / "EuroSAT_RGB"):
        if any((root / name).is_dir() for name in CLASSES):
            return root
    return None


def _extract(archive: Path) -> Path:
    """Extract to a temporary folder first, so that a half-extracted data set is never found."""
    target = archive.parent / "EuroSAT_RGB"
    if target.exists():
        raise ValueError(f"{target} exists but does not hold EuroSAT. Move it away and run this cell again.")
    with tempfile.TemporaryDirectory(dir=archive.parent, ignore_cleanup_errors=True) as temporary:
        try:
            shutil.unpack_archive(archive, temporary, "zip")
        except (shutil.ReadError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(
                f"{archive} is damaged or not a zip archive ({error}). Delete it and run this cell again."
            ) from error
        if (root := _class_root(Path(temporary))) is None:
            raise ValueError(f"{archive} does not contain the EuroSAT class folders {', '.join(CLASSES)}.")
        return root.rename(target)


def list_tiles(folder: str | Path) -> pd.DataFrame:
    """List all tiles in a fixed order, whatever order the operating system lists files in.

    Args:
        folder: Folder with the ten class folders.

    Returns:
        One row a tile, sorted by file: `file` (`Class/Class_n.jpg`, relative to `folder`) and `label`.

    Raises:
        ValueError: Class folders are missing, empty or unknown, or hold files that are not JPEG;
            the message lists all of them.
    """
    folder = Path(folder)
    folders = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    problems = [f"{folder / name}: class folder is missing" for name in sorted(set(CLASSES) - folders)]
    problems += [f"{folder / name}: not an EuroSAT class" for name in sorted(folders - set(CLASSES))]
    rows = []
    for label in sorted(folders & set(CLASSES)):
        names = sorted(path.name for path in (folder / label).iterdir())
        names = [name for name in names if not name.startswith(".") and name not in ("Thumbs.db", "desktop.ini")]
        foreign = [name for name in names if not name.lower().endswith((".jpg", ".jpeg"))]
        problems += [f"{folder / label / name}: not a JPEG tile" for name in foreign]
        if not names:
            problems.append(f"{folder / label}: class folder is empty")
        rows += [(f"{label}/{name}", label) for name in names if name not in foreign]
    _raise_if_any(problems, "Restore what is missing, move away what does not belong there, and run this cell again.")
    return pd.DataFrame(rows, columns=["file", "label"])


def load_tiles(folder: str | Path, files: Iterable[str]) -> np.ndarray:
    """Decode tiles into memory.

    Args:
        folder: Folder with the ten class folders.
        files: Paths relative to `folder`.

    Returns:
        `uint8` array of shape `(len(files), 64, 64, 3)`, RGB, in the order of `files`.

    Raises:
        ValueError: Files are unreadable, truncated, or not 64x64 RGB; the message lists all of them.
    """
    paths = [Path(folder, file) for file in files]
    tiles = np.empty((len(paths), TILE_SIZE, TILE_SIZE, 3), np.uint8)
    problems = []
    for index, path in enumerate(paths):  # threads would be slower: such small files leave no time to share
        try:
            with Image.open(path) as image:
                if image.size == (TILE_SIZE, TILE_SIZE) and image.mode == "RGB":
                    tiles[index] = np.asarray(image)
                else:
                    width, height = image.size
                    problems.append(f"{path}: {width}x{height} {image.mode} instead of 64x64 RGB")
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken files
            problems.append(f"{path}: {error}")
    _raise_if_any(problems, "Replace these files, for example from a fresh archive, and run this cell again.")
    return tiles


def _raise_if_any(problems: list[str], advice: str) -> None:
    if problems:
        raise ValueError(f"{len(problems)} problem(s) in the data set:\n  " + "\n  ".join(problems) + f"\n{advice}")


# ---------------------------------------------------------------- split and sample


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
    counts = tiles["label"].value_counts()
    if (few := counts[counts < 5]).size:
        raise ValueError(f"Three parts need at least 5 tiles a class; found {few.to_dict()}.")
    train, rest = train_test_split(tiles.index, train_size=0.6, stratify=tiles["label"], random_state=seed)
    validation, test = train_test_split(rest, test_size=0.5, stratify=tiles["label"][rest], random_state=seed)
    tiles.loc[train, "split"] = "train"
    tiles.loc[validation, "split"] = "validation"
    tiles.loc[test, "split"] = "test"
    return tiles


def split_digest(split: pd.DataFrame) -> str:
    """Return the SHA-256 of a split's list, which is also that of the file `split.csv`."""
    text = split[["file", "label", "split"]].to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()


def read_split(results_dir: str | Path, tiles: pd.DataFrame, model_path: str | Path) -> pd.DataFrame:
    """Read the split that a model was trained with, and check that model, split and data belong together.

    Args:
        results_dir: Folder with `split.csv` and `run.json` of the training run.
        tiles: The tiles found now, as from `list_tiles`.
        model_path: The model that the run saved.

    Returns:
        Columns `file`, `label`, `split`.

    Raises:
        FileNotFoundError: No training run was saved in `results_dir`.
        ValueError: A file cannot be read, the split or the model is not that of the run, or the tiles are
            not those that the split lists.
    """
    csv, run_json = Path(results_dir, "split.csv"), Path(results_dir, "run.json")
    for path in (csv, run_json):
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist. Run Training.ipynb first: it writes this file.")
    again = "Restore the files of one run, or run Training.ipynb again."
    try:
        split, run = pd.read_csv(csv), json.loads(run_json.read_text("utf-8"))
        digest, is_quick_look = split_digest(split), run["parameters"]["IMAGES_PER_CLASS"] is not None
        expected_split, expected_model = run["split_sha256"], run["model_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{csv} or {run_json} is damaged ({error!r}). {again}") from error
    if digest != expected_split:
        raise ValueError(f"{csv} is not the split that {run_json} was written with. {again}")
    if pooch.file_hash(model_path) != expected_model:
        raise ValueError(
            f"{model_path} is not the model that {run_json} was written with: it may have been trained on these "
            f"test tiles. {again}"
        )
    missing = sorted(set(split["file"]) - set(tiles["file"]))
    extra = [] if is_quick_look else sorted(set(tiles["file"]) - set(split["file"]))
    if missing or extra:
        raise ValueError(
            f"The data found do not match {csv}: {len(missing)} tiles of the split are missing {missing[:5]}, "
            f"{len(extra)} tiles are not in the split {extra[:5]}. Use the data set of the training run."
        )
    return split


def sample_test_tiles(split: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """Draw tiles from the test part only, as equally from all classes as `count` allows.

    Args:
        split: Columns `file`, `label`, `split`.
        count: Number of tiles to draw.
        seed: Same seed, same tiles.

    Returns:
        `count` rows of `split`, sorted by label.

    Raises:
        ValueError: `count` is not a whole number between 1 and the number of test tiles.
    """
    test = split[split["split"] == "test"].sample(frac=1, random_state=seed)
    if not isinstance(count, int) or not 1 <= count <= len(test):
        raise ValueError(
            f"The number of samples must be a whole number between 1 and {len(test)} (the test tiles), not {count!r}."
        )
    turn = test.groupby("label").cumcount()  # a class's 2nd tile comes after every class's 1st
    return test.loc[turn.sort_values(kind="stable").index[:count]].sort_values("label", kind="stable")


# ---------------------------------------------------------------- run and save


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path with the same suffix; rename it to `path` only if nothing failed.

    Args:
        path: The file to write; its folder is made if needed.

    Yields:
        The path to write to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_figure(figure: Figure, path: str | Path) -> DisplayedImage:
    """Write a figure as PNG and close it; what is returned shows that file in a notebook."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight", facecolor="white")
        if temporary.stat().st_size > MAX_FIGURE_BYTES:  # many tiles: 256 colours have to do
            with Image.open(temporary) as image:
                image.convert("RGB").quantize(256).save(temporary, optimize=True)
    plt.close(figure)
    return DisplayedImage(path)


def describe_machine() -> dict[str, str | int | float]:
    """Return processor, cores, memory, system, and this process's peak memory so far (GB = 1e9 bytes)."""
    processor = platform.processor() or platform.machine()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    if sys.platform == "win32":
        peak = psutil.Process().memory_info().peak_wset
    else:
        import resource  # not on Windows

        # Linux counts in KiB, macOS in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(terse=True),
        "peak_memory_gb": round(peak / 1e9, 2),
    }


class Progress(keras.callbacks.Callback):
    """One line that updates in place while Keras works: share done, speed, time left.

    Args:
        what: The first words of the line.
        tiles_per_step: Batch size, to state the speed in tiles per second.
    """

    WARM_STEPS = 20  # steps; the first ones are slower, so the estimate that stays is made after these

    def __init__(self, what: str, tiles_per_step: int):
        super().__init__()
        self.what, self.tiles_per_step = what, tiles_per_step
        self._handle, self._epoch, self._shown, self._between = None, 0, 0.0, 0.0

    def on_epoch_begin(self, epoch, logs=None) -> None:  # noqa: D102
        self._epoch, self._start = epoch, time.perf_counter()

    def on_train_batch_end(self, batch, logs=None) -> None:  # noqa: D102
        self._trained = time.perf_counter()
        line = self._show(batch + 1, f"accuracy {logs['accuracy']:.3f}")
        if self._epoch == 0 and batch == self.WARM_STEPS:
            print(line)  # stays visible in a log, unlike the line that updates

    def on_epoch_end(self, epoch, logs=None) -> None:  # noqa: D102
        self._between = time.perf_counter() - self._trained  # validation and checkpoint
        scores = f"accuracy {logs['accuracy']:.4f}, validation accuracy {logs['val_accuracy']:.4f}"
        print(f"{self.what}: epoch {epoch + 1}/{self.params['epochs']} done, {scores}")
        if epoch + 1 == self.params["epochs"] and self._handle is not None:
            self._handle.update({"text/plain": f"{self.what}: done"}, raw=True)

    def on_predict_begin(self, logs=None) -> None:  # noqa: D102
        self._epoch, self._start = 0, time.perf_counter()

    def on_predict_batch_end(self, batch, logs=None) -> None:  # noqa: D102
        self._show(batch + 1)

    def _show(self, step: int, note: str = "") -> str:
        now = time.perf_counter()
        epochs, steps = self.params.get("epochs", 1), self.params.get("steps") or step
        per_step = (now - self._start) / step
        left = (epochs - self._epoch) * steps - step
        minutes = (left * per_step + (epochs - self._epoch) * self._between) / 60
        epoch = f"epoch {self._epoch + 1}/{epochs}, " if epochs > 1 else ""
        line = (
            f"{self.what}: {epoch}{step / steps:4.0%}, {self.tiles_per_step / per_step:.0f} tiles/s, "
            f"about {minutes:.1f} min left {note}"
        ).rstrip()
        if now - self._shown > 1 or step == steps:  # s; often enough to be seen to move
            self._shown = now
            if self._handle is None:
                self._handle = display({"text/plain": line}, raw=True, display_id=True)
            else:
                self._handle.update({"text/plain": line}, raw=True)
        return line


# ---------------------------------------------------------------- judge


def wilson_interval(correct: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a proportion by Wilson (1927), which holds near 1 and for few samples.

    Args:
        correct: Number of successes.
        total: Number of trials.
        level: Confidence level.

    Returns:
        Lower and upper bound, between 0 and 1.

    Raises:
        ValueError: `correct` is not between 0 and `total`, or `total` is 0.
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"{correct} of {total} is not a proportion.")
    interval = binomtest(int(correct), int(total)).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return `(n, 10)` probabilities as they are when the logits are divided by `temperature`."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), 1e-38))
    return np.exp(log_softmax(logits / temperature, axis=1))


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Fit the one number that calibrates a classifier (Guo et al. 2017, arXiv:1706.04599).

    Args:
        probabilities: Shape `(n, 10)`, of tiles that were not trained on.
        labels: Shape `(n,)`, class indices.

    Returns:
        The temperature (above 1: the classifier was too sure) that minimises the log loss.
    """

    def loss(log_temperature: float) -> float:
        return log_loss(labels, apply_temperature(probabilities, np.exp(log_temperature)), labels=range(len(CLASSES)))

    return float(np.exp(minimize_scalar(loss, bounds=np.log([0.1, 10.0]), method="bounded").x))


def calibration_bins(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> tuple[float, pd.DataFrame]:
    """Compare confidence with accuracy in equally wide bins of the highest probability (Guo et al. 2017).

    Args:
        probabilities: Shape `(n, 10)`.
        labels: Shape `(n,)`, class indices.
        bins: Number of bins between 0 and 1.

    Returns:
        The expected calibration error, the mean of |accuracy - confidence| over bins weighted by their
        tiles; and a row for each non-empty bin: `confidence`, `accuracy`, `tiles`.
    """
    confidence = probabilities.max(axis=1)
    table = pd.DataFrame({"confidence": confidence, "accuracy": probabilities.argmax(axis=1) == labels})
    table["tiles"] = 1
    groups = table.groupby(np.minimum((confidence * bins).astype(int), bins - 1))
    table = groups.agg({"confidence": "mean", "accuracy": "mean", "tiles": "sum"})
    error = np.average((table["accuracy"] - table["confidence"]).abs(), weights=table["tiles"])
    return float(error), table


# ---------------------------------------------------------------- plot


def plot_tiles(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    columns: int = 10,
    correct: Sequence[bool] | None = None,
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
    height, width = images[0].shape[:2]
    row_inches = inches * height / width + 0.17 * max(title.count("\n") + 1 for title in titles)
    figure, axes = plt.subplots(
        rows, columns, figsize=(columns * inches, rows * row_inches), squeeze=False, layout="constrained"
    )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_visible(False)
    for index, (axis, image, title) in enumerate(zip(axes.flat, images, titles, strict=False)):
        axis.set_visible(True)
        axis.imshow(image)
        axis.set_title(title, fontsize=8, pad=3)
        for side in axis.spines.values():
            side.set_visible(correct is not None)
            if correct is not None:
                color, style = ("#0072B2", "-") if correct[index] else ("#E69F00", (0, (1.5, 0.8)))
                side.set(linewidth=4, color=color, linestyle=style, capstyle="butt")
    return figure


def plot_confusion(labels: Sequence[str], predictions: Sequence[str]) -> Figure:
    """Plot the confusion matrix, each row in per cent of its class.

    Args:
        labels: True class names.
        predictions: Predicted class names.
    """
    matrix = 100 * confusion_matrix(labels, predictions, labels=CLASSES, normalize="true")
    figure, axis = plt.subplots(figsize=(8.5, 6.8), layout="constrained")
    texts = np.vectorize(lambda value: f"{value:.1f}" if value else "")(matrix)
    sns.heatmap(
        matrix, annot=texts, fmt="", cmap="Blues", vmin=0, vmax=100, xticklabels=CLASSES, yticklabels=CLASSES,
        cbar_kws={"label": "share of the true class (%)"}, ax=axis,
    )  # fmt: skip
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.tick_params(axis="x", rotation=40)
    plt.setp(axis.get_xticklabels(), ha="right", rotation_mode="anchor")
    return figure


def plot_reliability(probabilities: dict[str, np.ndarray], labels: np.ndarray) -> Figure:
    """Plot accuracy against confidence, above a histogram of confidence, for each set of probabilities.

    Args:
        probabilities: Name to `(n, 10)` array.
        labels: Shape `(n,)`, class indices.
    """
    figure, axes = plt.subplots(
        2, len(probabilities), figsize=(5 * len(probabilities), 5.5), height_ratios=[3, 1.2],
        sharex=True, sharey="row", squeeze=False, layout="constrained",
    )  # fmt: skip
    for (upper, lower), (name, values) in zip(axes.T, probabilities.items(), strict=True):
        error, bins = calibration_bins(values, labels)
        upper.plot([0, 1], [0, 1], ":", color="black", label="perfectly calibrated")
        right = (bins["accuracy"] * bins["tiles"]).round()
        low, high = np.array([wilson_interval(*pair) for pair in zip(right, bins["tiles"], strict=True)]).T
        bars = [bins["accuracy"] - low, high - bins["accuracy"]]
        upper.errorbar(
            bins["confidence"], bins["accuracy"], bars, fmt="o-", color="#0072B2", label="tiles, 95% interval"
        )
        upper.set(title=f"{name}: expected calibration error {100 * error:.2f}%")
        upper.legend()
        lower.hist(values.max(axis=1), bins=15, range=(0, 1), color="#0072B2")
        lower.set(yscale="log", xlabel="highest probability (confidence)")
    axes[0, 0].set_ylabel("share that is right")
    axes[1, 0].set_ylabel("tiles")
    return figure


def plot_interval_width(accuracy: float, samples: int, total: int) -> Figure:
    """Plot how the 95% Wilson interval narrows with the number of tiles.

    Args:
        accuracy: The accuracy around which the intervals are drawn, 0 to 1.
        samples: A number of tiles to mark.
        total: The number of test tiles, also marked.
    """
    counts = sorted({n for n in (5, 10, 20, 50, 100, 200, 500, 1000, 2000) if n < total} | {samples, total})
    figure, axis = plt.subplots(figsize=(8, 3.8), layout="constrained")
    axis.axhline(100 * accuracy, color="black", linewidth=1, label=f"accuracy of all {total:,} tiles: {accuracy:.1%}")
    for count in counts:
        low, high = wilson_interval(round(accuracy * count), count)
        is_marked = count in (samples, total)
        axis.vlines(
            count, 100 * low, 100 * high, linewidth=7, color="#D55E00" if is_marked else "#56B4E9",
            linestyle=(0, (1, 0.3)) if count == samples else "-",
            label=f"{count:,} tiles: {100 * (high - low):.1f} points wide" if is_marked else None,
        )  # fmt: skip
    axis.set(xscale="log", xlabel="number of test tiles", ylabel="accuracy (%), 95% Wilson interval")
    axis.set_xticks(counts, [f"{count:,}" for count in counts])
    axis.minorticks_off()
    axis.legend(loc="lower right")
    return figure
