"""Finding, downloading, LISTING, decoding and splitting the tiles, and what can be wrong there."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import nullcontext
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from draw_tiles import draw_tiles
from PIL import Image

import eurosat_utils as eu

FILES = sorted(
    f"{label}/{label}_{number}.jpg"
    for size, label in enumerate(eu.CLASSES, 20)
    for number in range(size + size % 5)
)
LISTING = pd.DataFrame({"file": FILES, "label": [file.split("/")[0] for file in FILES]})
THIRDS = LISTING.assign(split=np.resize(eu.PARTS, len(FILES)))  # every third tile in another part


@pytest.fixture
def data(tmp_path):
    """A folder with 30 tiles in `EuroSAT_RGB/`."""
    draw_tiles(tmp_path / "data" / "EuroSAT_RGB", 3)
    return tmp_path / "data"


def pack(folder, name):
    """Move what is in a folder into an archive there; return its content."""
    made = Path(shutil.make_archive(folder.with_name("packed"), "zip", folder))
    shutil.rmtree(folder)
    folder.mkdir()
    return made.rename(folder / name).read_bytes()


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def offline(monkeypatch):
    """Fail the test if anything is downloaded."""
    monkeypatch.setattr("pooch.HTTPDownloader.__call__", lambda *_, **__: pytest.fail("download"))


@pytest.mark.parametrize("root", ["EuroSAT_RGB", "2750", "."])
def test_present_folder_is_used_as_it_is(tmp_path, offline, root):
    draw_tiles(tmp_path / root, 1)
    assert eu.fetch_eurosat(str(tmp_path)) == tmp_path / root


@pytest.mark.parametrize("root", ["EuroSAT_RGB", "2750", "."])
@pytest.mark.parametrize("name", list(eu.ARCHIVES))
def test_present_archive_is_unpacked_even_if_packed_otherwise(tmp_path, offline, name, root):
    draw_tiles(tmp_path / "data" / root, 1)
    content = pack(tmp_path / "data", name)
    assert len(eu.list_tiles(eu.fetch_eurosat(tmp_path / "data"))) == len(eu.CLASSES)
    assert names(tmp_path / "data") == {name, "EuroSAT_RGB"}
    assert (tmp_path / "data" / name).read_bytes() == content


def test_half_an_unpacking_that_was_killed_is_never_believed(data, offline, monkeypatch):
    def stop(source, target):
        target.write(source.read(100))
        if "Forest_2" in target.name:
            raise KeyboardInterrupt

    def never_deleted(dir, **_):
        return nullcontext(tempfile.mkdtemp(dir=dir))

    pack(data, "EuroSAT_RGB.zip")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("zipfile.shutil.copyfileobj", stop)
        patch.setattr("tempfile.TemporaryDirectory", never_deleted)
        eu.fetch_eurosat(data)
    assert len(names(data)) == 2
    folder = eu.fetch_eurosat(data)
    assert len(eu.load_tiles(folder, eu.list_tiles(folder)["file"])) == 30


@pytest.mark.parametrize("fault", ["truncated", "bits", "tiff", "no Forest"])
def test_damaged_or_foreign_archive_is_named_and_kept(data, offline, fault):
    if fault == "no Forest":
        (data / "EuroSAT_RGB" / "Forest").rename(data / "EuroSAT_RGB" / "Desert")
    if fault == "tiff":  # as the other EuroSAT, with 13 bands
        for file in list(data.glob("*/*/*")):
            file.rename(file.with_suffix(".tif"))
    content = bytearray(pack(data, "EuroSAT.zip"))
    if fault == "truncated":
        del content[-5000:]
    if fault == "bits":  # a kind of compression that does not exist
        content[content.index(b"River_1.jpg") + len("River_1.jpg")] = 255
    (data / "EuroSAT.zip").write_bytes(content)
    with pytest.raises(ValueError, match=r"(?s)EuroSAT\.zip.*Delete it"):
        eu.fetch_eurosat(data)
    assert names(data) == {"EuroSAT.zip"}
    assert (data / "EuroSAT.zip").read_bytes() == content


@pytest.fixture
def web(monkeypatch):
    """A web server on this machine: its address, its pages, and who asked for which."""
    pages, requests, over = {}, [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path[1:]
            requests.append((name, self.headers["User-Agent"]))
            if name == "hangs":
                over.wait(30)
            content = pages.get(name, b"")
            self.send_response(200 if name in pages else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:5000] if name == "breaks" else content)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield f"http://127.0.0.1:{server.server_port}/", pages, requests
    over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def publish(data, web, monkeypatch):
    """A function that makes two pages the sources; both archives are the same here."""
    url, pages, _ = web
    content = pack(data, "EuroSAT.zip")
    (data / "EuroSAT.zip").unlink()
    pages |= {"good": content, "breaks": content, "wrong": content[::-1]}
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"

    def publish(*two):
        sources = [(url + page, checksum) for page in two]
        monkeypatch.setattr(eu, "ARCHIVES", dict(zip(eu.ARCHIVES, sources, strict=True)))

    return publish


@pytest.mark.parametrize("first", ["good", "missing", "wrong", "breaks", "hangs"])
def test_download_is_verified_and_the_second_source_tried(data, web, publish, monkeypatch, first):
    if first == "hangs":
        monkeypatch.setattr(eu, "TIMEOUT", 2)
    publish(first, "good")
    asked = ["good"] if first == "good" else [first, "good"]
    assert len(eu.list_tiles(eu.fetch_eurosat(data / "new"))) == 30
    assert names(data / "new") == {list(eu.ARCHIVES)[len(asked) - 1], "EuroSAT_RGB"}
    assert web[2] == [(page, "eurosat-notebooks/1.0") for page in asked]


def test_when_no_download_works_the_message_says_what_to_do(data, web, publish):
    publish("missing", "wrong")
    with pytest.raises(FileNotFoundError, match="with a browser, put it there") as error:
        eu.fetch_eurosat(data)
    for expected in ("404", "SHA256", f"{web[0]}wrong", *eu.ARCHIVES, str(data), "tests/demo.py"):
        assert expected in str(error.value)
    assert names(data) == set()


def test_imagenet_weights_are_fetched_once_and_others_are_a_path(tmp_path, web, monkeypatch):
    monkeypatch.setattr("os.path.expanduser", str)  # as for a user without a home
    url, pages, requests = web
    pages["a.h5"] = b"weights"
    checksum = f"md5:{hashlib.md5(b'weights').hexdigest()}"
    monkeypatch.setattr(eu, "IMAGENET_WEIGHTS", ("a.h5", f"{url}a.h5", checksum))
    path = tmp_path / "data" / "a.h5"
    for data_dir in (path.parent, str(path.parent)):
        assert eu.fetch_weights("imagenet", data_dir) == path
    path.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"a\.h5 is not the published file\. Move it away"):
        eu.fetch_weights("imagenet", path.parent)
    assert path.read_bytes() == b"mine"
    for given in ("models/my.h5", Path("models/my.h5")):
        assert eu.fetch_weights(given) == Path("models/my.h5")
    assert len(requests) == 1


def test_tiles_are_listed_in_one_order_and_decoded_in_the_order_asked_for(data):
    folder = data / "EuroSAT_RGB"
    tiles = eu.list_tiles(folder)
    assert tiles["file"].is_monotonic_increasing
    assert tiles["label"].value_counts().to_dict() == dict.fromkeys(eu.CLASSES, 3)
    assert (tiles["file"].str.split("/").str[0] == tiles["label"]).all()
    files = tiles["file"].iloc[::-1]
    for image, file in zip(eu.load_tiles(folder, files), files, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(folder / file)))


def test_every_problem_of_the_folders_is_listed(data):
    folder = data / "EuroSAT_RGB"
    (folder / "SeaLake").rename(folder / "Desert")
    (folder / "River" / "River_1.tif").touch()
    with pytest.raises(ValueError, match="3 problem") as error:
        eu.list_tiles(folder)
    for expected in ("SeaLake: missing", "Desert: not a class", "River_1.tif: not a JPEG"):
        assert expected in str(error.value)


def test_every_bad_file_is_listed(data):
    folder = data / "EuroSAT_RGB"
    Image.new("RGB", (65, 64)).save(folder / "River" / "River_2.jpg")
    Image.new("L", (64, 64)).save(folder / "River" / "River_3.jpg")
    (folder / "Forest" / "Forest_1.jpg").write_bytes(b"not an image")
    os.truncate(folder / "Forest" / "Forest_3.jpg", 900)
    with pytest.raises(ValueError, match="5 problem") as error:
        eu.load_tiles(folder, [*eu.list_tiles(folder)["file"], "River/River_99.jpg"])
    for name in ("River_2", "River_3", "Forest_1", "Forest_3", "River_99"):
        assert f"{name}.jpg: " in str(error.value)


@pytest.mark.parametrize("seed", range(5))
def test_random_split_is_complete_disjoint_stratified_and_repeatable(seed):
    labels = np.repeat(eu.CLASSES, np.random.default_rng(seed).integers(5, 40, len(eu.CLASSES)))
    tiles = pd.DataFrame({"file": [f"{n:03}.jpg" for n in range(len(labels))], "label": labels})
    split = eu.split_tiles(tiles, "random", seed)
    pd.testing.assert_frame_equal(split[["file", "label"]], tiles)
    counts = pd.crosstab(split["label"], split["split"])
    for part, share in zip(eu.PARTS, (0.6, 0.2, 0.2), strict=True):
        assert (counts[part] - share * counts.sum(axis=1)).abs().max() < 2
    pd.testing.assert_frame_equal(eu.split_tiles(tiles[::-1], "random", seed), split)


def test_digest_is_that_of_the_file_and_stays_with_later_libraries(tmp_path):
    split = eu.split_tiles(LISTING)
    digest = eu.split_digest(split)
    assert digest == "98baef26db694f8d325f442e426edf609c586ad5c1b46d44c1b7b8512d1521b1"
    assert digest != eu.split_digest(eu.split_tiles(LISTING, seed=1))
    eu.save_table(split, tmp_path / "split.csv")
    assert digest == hashlib.sha256((tmp_path / "split.csv").read_bytes()).hexdigest()
    assert digest == eu.split_digest(eu.split_tiles(LISTING, tmp_path / "split.csv", seed=1))


def test_too_few_tiles_and_a_misspelt_split_are_refused():
    few = LISTING.drop(LISTING.index[LISTING["label"] == "River"][1:])
    with pytest.raises(ValueError, match="least populated class"):
        eu.split_tiles(few)
    with pytest.raises(FileNotFoundError, match="longtitude"):
        eu.split_tiles(LISTING, "longtitude")


@pytest.fixture
def lists(web, monkeypatch):
    """Publish three lists; return their names."""
    url, pages, _ = web
    for part, name in zip(eu.PARTS, eu.LONGITUDE_LISTS, strict=True):
        tiles = THIRDS["file"][THIRDS["split"] == part].str.split("/").str[1]
        pages[name] = "\n".join(tiles).encode()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in pages.items()}
    monkeypatch.setattr(eu, "LONGITUDE_LISTS", digests)
    monkeypatch.setattr(eu, "LONGITUDE_URL", url)
    return list(digests)


def test_lists_are_downloaded_once_and_never_overwritten(tmp_path, lists, web):
    for folder in (tmp_path, str(tmp_path)):
        split = eu.split_tiles(LISTING[::-1], "longitude", data_dir=folder)
        pd.testing.assert_frame_equal(split, THIRDS)
    assert [page for page, _ in web[2]] == lists
    (tmp_path / lists[1]).write_text("mine")
    with pytest.raises(ValueError, match=f"{lists[1]} is not the published file"):
        eu.split_tiles(LISTING, "longitude", data_dir=tmp_path)
    assert (tmp_path / lists[1]).read_text() == "mine"


def test_tile_that_the_lists_do_not_know_is_named(tmp_path, lists):
    more = pd.concat([LISTING, pd.DataFrame({"file": ["River/Forest_1.jpg"], "label": ["River"]})])
    with pytest.raises(ValueError, match=r"1 tiles are in no list.*such as River/Forest_1\.jpg"):
        eu.split_tiles(more, "longitude", data_dir=tmp_path)


def test_split_file_is_used_as_it_is_and_other_tiles_are_left_out(tmp_path):
    path, named = tmp_path / "mine.csv", THIRDS[THIRDS.index % 7 > 0]
    named[["split", "file"]].sample(frac=1, random_state=0).to_csv(path, index=False)
    for given in (path, str(path)):
        pd.testing.assert_frame_equal(eu.split_tiles(LISTING[::-1], given), named)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("River_1.jpg,", "River_999.jpg,", r"1 of its .*not there \['River/River_999\.jpg'\]"),
        ("River_1.jpg,", "River_2.jpg,", r"1 are named twice \['River/River_2\.jpg'\]"),
        (",validation", ",val", r"parts are \['test', 'train', 'val'\].*train, validation, test"),
        (",test", ",", r"parts are \['nan', 'train', 'validation'\]"),
        (",test", ",train", "leaves no AnnualCrop in test, no Forest in test.* Use more"),
    ],
)
def test_split_file_that_does_not_suit_is_one_clear_error(tmp_path, old, new, message):
    text = THIRDS[["file", "split"]].to_csv(index=False)
    (tmp_path / "mine.csv").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=rf"mine\.csv.*{message}"):
        eu.split_tiles(LISTING, tmp_path / "mine.csv")
    (tmp_path / "mine.csv").write_text(text.replace("split", "part"))
    with pytest.raises(ValueError, match="columns expected but not found"):
        eu.split_tiles(LISTING, tmp_path / "mine.csv")


def test_drawn_tiles_are_the_same_each_time(tmp_path):
    first, again = (draw_tiles(tmp_path / name, 2) for name in "ab")
    files = eu.list_tiles(first)["file"]
    np.testing.assert_array_equal(eu.load_tiles(first, files), eu.load_tiles(again, files))


def test_import_is_quiet_and_settles_keras_whatever_is_configured(tmp_path):
    configured = {"floatx": "float16", "backend": "jax", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(configured))
    program = """
import eurosat_utils, keras
print(keras.config.dtype_policy().name, keras.config.floatx())
print(keras.config.backend(), keras.config.image_data_format())
"""
    ours = ("TF_", "CUDA_", "KERAS_", "HOME")  # what this process has set, and what is to be wrong
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"KERAS_HOME": str(tmp_path), "MPLCONFIGDIR": mpl.get_cachedir()}
    options = {"cwd": REPOSITORY, "env": environment, "capture_output": True, "text": True}
    process = subprocess.run([sys.executable, "-c", program], check=False, **options)
    assert process.stderr == ""
    assert process.stdout.split() == ["float32", "float32", "tensorflow", "channels_last"]
