"""The three parts never mix, never move, and are checked before anything is sampled from them."""

import hashlib
import json

import pandas as pd
import pytest
from conftest import make_tiles, notebook_functions

from eurosat_utils import CLASSES, list_tiles, split_digest, split_tiles

inference = notebook_functions("Inference.ipynb")
read_split, sample_test_tiles = inference["read_split"], inference["sample_test_tiles"]


@pytest.fixture
def tiles():
    """A list of 270 tiles: classes of 20 to 34."""
    rows = [
        (f"{label}/{label}_{n}.jpg", label) for size, label in enumerate(CLASSES, 20) for n in range(size + size % 5)
    ]
    return pd.DataFrame(rows, columns=["file", "label"]).sort_values("file", ignore_index=True)


def test_parts_are_disjoint_complete_and_stratified(tiles):
    split = split_tiles(tiles, seed=0)
    assert split["file"].is_unique
    assert list(split["file"]) == list(tiles["file"])
    shares = pd.crosstab(split["label"], split["split"], normalize="index")
    for part, share in {"train": 0.6, "validation": 0.2, "test": 0.2}.items():
        assert (split["split"] == part).mean() == pytest.approx(share, abs=0.005)
        assert shares[part].between(share - 0.04, share + 0.04).all()


def test_full_size_has_the_published_counts():
    sizes = {"Pasture": 2000} | dict.fromkeys(("Highway", "Industrial", "PermanentCrop", "River"), 2500)
    rows = [(f"{label}/{label}_{n}.jpg", label) for label in CLASSES for n in range(sizes.get(label, 3000))]
    split = split_tiles(pd.DataFrame(rows, columns=["file", "label"]), seed=0)
    assert split["split"].value_counts().to_dict() == {"train": 16200, "validation": 5400, "test": 5400}
    counts = pd.crosstab(split["label"], split["split"])
    assert counts.loc["Pasture"].to_dict() == {"test": 400, "train": 1200, "validation": 400}


def test_split_ignores_the_order_of_listing_and_the_name_of_the_root(tmp_path, tiles):
    split = split_tiles(tiles, seed=3)
    shuffled = split_tiles(tiles.sample(frac=1, random_state=5), seed=3)
    pd.testing.assert_frame_equal(split, shuffled)
    digests = {
        split_digest(split_tiles(list_tiles(make_tiles(tmp_path / root)), seed=0)) for root in ("EuroSAT_RGB", "2750")
    }
    assert len(digests) == 1


def test_seed_decides(tiles):
    assert split_digest(split_tiles(tiles, 0)) == split_digest(split_tiles(tiles, 0))
    assert split_digest(split_tiles(tiles, 0)) != split_digest(split_tiles(tiles, 1))


def test_too_few_tiles_are_named(tiles):
    with pytest.raises(ValueError, match=r"at least 5 tiles a class; found \{'River': 4\}"):
        split_tiles(tiles.drop(tiles.index[tiles["label"] == "River"][4:]), 0)


@pytest.fixture
def saved(tmp_path, tiles):
    """A folder with `split.csv` and `run.json`, as Training.ipynb leaves them."""
    split = split_tiles(tiles, 0)
    split.to_csv(tmp_path / "split.csv", index=False)
    (tmp_path / "model.keras").write_text("a model")
    model_sha256 = hashlib.sha256(b"a model").hexdigest()
    run = {
        "split_sha256": split_digest(split),
        "model_sha256": model_sha256,
        "parameters": {"IMAGES_PER_CLASS": None},
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    return tmp_path


def test_saved_split_is_read_back(saved, tiles):
    pd.testing.assert_frame_equal(read_split(saved, tiles, saved / "model.keras"), split_tiles(tiles, 0))


@pytest.mark.parametrize("name", ["split.csv", "run.json"])
def test_missing_record_says_to_train_first(saved, tiles, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"Not there: .*{name}\. Run Training\.ipynb first"):
        read_split(saved, tiles, saved / "model.keras")


def test_changed_split_is_refused(saved, tiles):
    split = pd.read_csv(saved / "split.csv")
    split.loc[split["split"] == "train", "split"] = "test"
    split.to_csv(saved / "split.csv", index=False)
    with pytest.raises(ValueError, match=r"split\.csv is not the split that .*run\.json was written with"):
        read_split(saved, tiles, saved / "model.keras")


def test_model_of_another_run_is_refused(saved, tiles):
    (saved / "model.keras").write_text("another model")
    with pytest.raises(ValueError, match=r"model\.keras is not the model that .*run\.json was written with"):
        read_split(saved, tiles, saved / "model.keras")


@pytest.mark.parametrize(
    ("name", "content"),
    [("run.json", "{"), ("run.json", "{}"), ("run.json", "[]"), ("split.csv", ""), ("split.csv", "file,label\na,b\n")],
)
def test_damaged_record_is_named(saved, tiles, name, content):
    (saved / name).write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is damaged .*run Training\.ipynb again"):
        read_split(saved, tiles, saved / "model.keras")


def test_other_data_are_refused(saved, tiles):
    with pytest.raises(ValueError, match=r"1 tiles of the split are missing \['AnnualCrop/AnnualCrop_0.jpg'\]"):
        read_split(saved, tiles.iloc[1:], saved / "model.keras")
    more = pd.concat([tiles, pd.DataFrame({"file": ["River/new.jpg"], "label": ["River"]})])
    with pytest.raises(ValueError, match=r"1 tiles are not in the split \['River/new.jpg'\]"):
        read_split(saved, more, saved / "model.keras")


def test_quick_look_may_use_a_part_of_the_data(saved, tiles):
    run = json.loads((saved / "run.json").read_text())
    run["parameters"]["IMAGES_PER_CLASS"] = 20
    (saved / "run.json").write_text(json.dumps(run))
    more = pd.concat([tiles, pd.DataFrame({"file": ["River/new.jpg"], "label": ["River"]})])
    assert len(read_split(saved, more, saved / "model.keras")) == len(tiles)


@pytest.mark.parametrize(("count", "fewest", "most"), [(20, 2, 2), (25, 2, 3), (3, 0, 1)])
def test_samples_come_from_the_test_part_and_equally_from_all_classes(tiles, count, fewest, most):
    split = split_tiles(tiles, 0)
    samples = sample_test_tiles(split, count, seed=1)
    assert len(samples) == count
    assert samples["file"].is_unique
    assert set(samples["split"]) == {"test"}
    per_class = samples["label"].value_counts().reindex(CLASSES, fill_value=0)
    assert per_class.min() == fewest
    assert per_class.max() == most
    pd.testing.assert_frame_equal(samples, sample_test_tiles(split, count, seed=1))
    assert set(samples["file"]) != set(sample_test_tiles(split, count, seed=2)["file"])


@pytest.mark.parametrize("count", [0, -1, 10_000, "5", 5.0])
def test_impossible_number_of_samples(tiles, count):
    with pytest.raises(ValueError, match=rf"SAMPLES must be a whole number from 1 to \d+, not {count!r}"):
        sample_test_tiles(split_tiles(tiles, 0), count, seed=0)
