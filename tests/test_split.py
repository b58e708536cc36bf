"""The three parts never mix and never move."""

import hashlib
from pathlib import Path

import pandas as pd
import pytest

from eurosat_utils import CLASSES, split_by_longitude, split_digest, split_tiles


@pytest.fixture
def tiles():
    """A list of 270 tiles: classes of 20 to 34."""
    sizes = [(label, size + size % 5) for size, label in enumerate(CLASSES, 20)]
    rows = [(f"{label}/{label}_{n}.jpg", label) for label, size in sizes for n in range(size)]
    return pd.DataFrame(rows, columns=["file", "label"]).sort_values("file", ignore_index=True)


def test_full_size_has_the_published_counts():
    sizes = dict.fromkeys(CLASSES, 3000) | {"Pasture": 2000}
    sizes |= dict.fromkeys(("Highway", "Industrial", "PermanentCrop", "River"), 2500)
    rows = [(f"{label}/{label}_{n}.jpg", label) for label in CLASSES for n in range(sizes[label])]
    split = split_tiles(pd.DataFrame(rows, columns=["file", "label"]), seed=0)
    counts = pd.crosstab(split["label"], split["split"])
    assert counts.sum().to_dict() == {"train": 16200, "validation": 5400, "test": 5400}
    assert counts.loc["Pasture"].to_dict() == {"test": 400, "train": 1200, "validation": 400}


def test_seed_decides_and_means_the_same_tiles_with_later_libraries(tiles):
    digest = split_digest(split_tiles(tiles, 0))
    assert digest == "98baef26db694f8d325f442e426edf609c586ad5c1b46d44c1b7b8512d1521b1"
    assert split_digest(split_tiles(tiles, 1)) != digest


def test_digest_is_that_of_the_saved_file(tiles, tmp_path):
    split = split_tiles(tiles, 0)
    split.to_csv(tmp_path / "split.csv", index=False, lineterminator="\n")
    saved = hashlib.sha256((tmp_path / "split.csv").read_bytes()).hexdigest()
    assert saved == split_digest(split)


def test_too_few_tiles_are_named(tiles):
    with pytest.raises(ValueError, match=r"at least 5 tiles a class; found \{'River': 4\}"):
        split_tiles(tiles.drop(tiles.index[tiles["label"] == "River"][4:]), 0)


@pytest.fixture
def lists(tiles, monkeypatch):
    """Three lists in place of the published ones, of every third tile each; their texts by name."""
    parts, texts = ("train", "validation", "test"), {}
    published = {}
    for start, part in enumerate(parts):
        text = "".join(f"{file.split('/')[1]}\n" for file in tiles["file"][start::3])
        url = f"https://example.org/lists/spatial-{part[:3]}.txt"
        published[part] = url, hashlib.sha256(text.encode()).hexdigest()
        texts[url.rsplit("/", 1)[1]] = text
    monkeypatch.setattr("eurosat_utils.LONGITUDE_LISTS", published)
    return texts


def save(lists, folder):
    """Write the lists into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in lists.items():
        (folder / name).write_bytes(text.encode())
    return folder


@pytest.fixture
def downloads(lists, monkeypatch):
    """Replace downloading; what is asked for is collected."""
    asked = []

    def download(url, output_file, pooch):
        asked.append(url)
        Path(output_file).write_bytes(lists[url.rsplit("/", 1)[1]].encode())

    monkeypatch.setattr("pooch.HTTPDownloader", lambda **_: download)
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)  # between two attempts
    return asked


@pytest.mark.parametrize("place", ["data", "data/longitude", ".", "longitude"])
def test_published_lists_are_used_where_they_lie(tmp_path, tiles, lists, downloads, place):
    save(lists, tmp_path / place)
    (tmp_path / "data").mkdir(exist_ok=True)
    split = split_by_longitude(tiles.sample(frac=1, random_state=0), tmp_path / "data")
    pd.testing.assert_frame_equal(split[["file", "label"]], tiles)
    assert list(split["split"][:6]) == 2 * ["train", "validation", "test"]
    assert downloads == []


@pytest.mark.parametrize("data_dir", ["data", "data/EuroSAT_RGB.zip"])
def test_lists_are_downloaded_once_into_the_folder_of_the_data(
    tmp_path, tiles, downloads, data_dir
):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "EuroSAT_RGB.zip").touch()
    part = tiles.groupby("label").head(6)  # a quick look
    for _ in range(2):
        split = split_by_longitude(part, tmp_path / data_dir)
    assert list(split["file"]) == list(part["file"])
    assert len(downloads) == len(list((tmp_path / "data").glob("*.txt"))) == 3


def test_lists_that_cannot_be_downloaded_or_are_others_are_refused(
    tmp_path, tiles, lists, downloads
):
    lists["spatial-val.txt"] += "one more"
    message = r"(?s)could not be downloaded.*/lists/spatial-val\.txt.*SHA256.*browser.*as spatial-v"
    with pytest.raises(FileNotFoundError, match=message):
        split_by_longitude(tiles, tmp_path)
    assert not (tmp_path / "spatial-val.txt").exists()
    save(lists, tmp_path)
    with pytest.raises(ValueError, match=r"spatial-val\.txt is not the published list. Delete it"):
        split_by_longitude(tiles, tmp_path)
    assert (tmp_path / "spatial-val.txt").read_text().endswith("one more")  # not replaced


def test_tiles_that_the_lists_do_not_suit_are_named(tmp_path, tiles, lists):
    save(lists, tmp_path)
    for file, label in (("River/River_999.jpg", "River"), ("River/Forest_1.jpg", "River")):
        more = pd.concat([tiles, pd.DataFrame({"file": [file], "label": [label]})])
        with pytest.raises(ValueError, match=f"1 tiles are in none of the lists.*{file}"):
            split_by_longitude(more, tmp_path)
    few = tiles.drop(tiles.index[tiles["label"] == "Forest"][2:])
    with pytest.raises(ValueError, match="leaves no tile: Forest in (train|validation|test). Use"):
        split_by_longitude(few, tmp_path)
