"""Finding, downloading, listing and decoding the tiles, and every input that can be wrong."""

import hashlib
import http.server
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import TILES_PER_CLASS, make_tiles
from PIL import Image

from eurosat_utils import ARCHIVES, CLASSES, USER_AGENT, fetch_eurosat, list_tiles, load_tiles


@pytest.fixture
def no_network(monkeypatch):
    """Fail the test if anything is downloaded."""
    monkeypatch.setattr("pooch.retrieve", lambda *_, **__: pytest.fail("must not download"))


@pytest.mark.parametrize("root", ["EuroSAT_RGB", "2750", ".", "EuroSAT_RGB/EuroSAT_RGB"])
def test_present_folder_is_used_as_it_is(tmp_path, no_network, root):
    make_tiles(tmp_path / root, per_class=1)
    assert fetch_eurosat(tmp_path).resolve() == (tmp_path / root).resolve()


@pytest.mark.parametrize("root", ["EuroSAT_RGB", "2750"])
@pytest.mark.parametrize("name", list(ARCHIVES))
def test_present_archive_is_extracted(tmp_path, no_network, root, name):
    make_tiles(tmp_path / "source" / root, per_class=1)
    (tmp_path / "data").mkdir()
    shutil.make_archive(tmp_path / "archive", "zip", tmp_path / "source")
    (tmp_path / "archive.zip").rename(tmp_path / "data" / name)
    folder = fetch_eurosat(tmp_path / "data")
    assert len(list_tiles(folder)) == len(CLASSES)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {name, "EuroSAT_RGB"}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text"])
def test_damaged_archive_names_the_file_and_leaves_nothing(data, no_network, damage):
    shutil.make_archive(data / "EuroSAT_RGB", "zip", data, "EuroSAT_RGB")
    shutil.rmtree(data / "EuroSAT_RGB")
    archive = data / "EuroSAT_RGB.zip"
    content = archive.read_bytes()
    middle = len(content) // 2
    archive.write_bytes(
        {
            "truncated": content[:middle],
            "flipped": content[:middle]
            + bytes(byte ^ 255 for byte in content[middle : middle + 50])
            + content[middle + 50 :],
            "text": b"<html>429 Too Many Requests</html>",
        }[damage]
    )
    with pytest.raises(ValueError, match=r"EuroSAT_RGB\.zip is damaged or not a zip archive.*Delete it"):
        fetch_eurosat(data)
    assert [path.name for path in data.iterdir()] == ["EuroSAT_RGB.zip"]


def test_extraction_never_touches_a_folder_that_is_in_the_way(data, no_network):
    shutil.make_archive(data / "EuroSAT_RGB", "zip", data, "EuroSAT_RGB")
    shutil.rmtree(data / "EuroSAT_RGB")
    (data / "EuroSAT_RGB").mkdir()
    (data / "EuroSAT_RGB" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"EuroSAT_RGB exists but does not hold EuroSAT\. Move it away"):
        fetch_eurosat(data)
    assert [path.name for path in (data / "EuroSAT_RGB").iterdir()] == ["notes.txt"]


def test_archive_without_the_classes_is_refused(tmp_path, no_network):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "readme.txt").write_text("nothing here")
    shutil.make_archive(tmp_path / "EuroSAT", "zip", tmp_path / "source")
    with pytest.raises(ValueError, match=r"EuroSAT\.zip does not contain the EuroSAT class folders AnnualCrop"):
        fetch_eurosat(tmp_path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine in place of the two published sources; returns what was asked of it."""
    make_tiles(tmp_path / "source" / "2750", per_class=1)
    content = Path(shutil.make_archive(tmp_path / "good", "zip", tmp_path / "source")).read_bytes()
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, self.headers["User-Agent"]))
            status = {"/good": 200, "/wrong": 200}.get(self.path, 403)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content if self.path == "/good" else b"something else")

        def log_message(self, *_):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()

    def publish(first, second):
        sha256, url = hashlib.sha256(content).hexdigest(), f"http://127.0.0.1:{web.server_port}"
        sources = {"EuroSAT_RGB.zip": (f"{url}/{first}", sha256), "EuroSAT.zip": (f"{url}/{second}", sha256)}
        monkeypatch.setattr("eurosat_utils.ARCHIVES", sources)
        return requests

    yield publish
    web.shutdown()


@pytest.mark.parametrize("first", ["good", "forbidden", "wrong"])
def test_download_verifies_and_falls_back_to_the_mirror(tmp_path, server, first):
    requests = server(first, "good")
    assert len(list_tiles(fetch_eurosat(tmp_path / "new" / "data"))) == len(CLASSES)
    assert [path for path, _ in requests] == (["/good"] if first == "good" else [f"/{first}", "/good"])
    assert {agent for _, agent in requests} == {USER_AGENT}


def test_when_nothing_works_the_message_says_what_was_tried_and_what_to_do(tmp_path, server):
    server("forbidden", "wrong")
    with pytest.raises(FileNotFoundError) as error:
        fetch_eurosat(tmp_path / "data")
    message = str(error.value)
    for expected in ("/forbidden", "403", "/wrong", "SHA256", str(tmp_path / "data"), "EuroSAT_RGB.zip", "browser"):
        assert expected in message
    assert not any((tmp_path / "data").iterdir())


def test_tiles_are_listed_in_one_order(data):
    (data / "EuroSAT_RGB" / "River" / ".DS_Store").touch()
    (data / "EuroSAT_RGB" / "River" / "Thumbs.db").touch()
    tiles = list_tiles(data / "EuroSAT_RGB")
    assert tiles["file"].is_monotonic_increasing
    assert tiles["file"].iloc[0] == "AnnualCrop/AnnualCrop_1.jpg"
    assert tiles["label"].value_counts().to_dict() == dict.fromkeys(CLASSES, TILES_PER_CLASS)
    assert (tiles["file"].str.split("/").str[0] == tiles["label"]).all()


def test_every_problem_of_the_folders_is_listed(data):
    folder = data / "EuroSAT_RGB"
    shutil.rmtree(folder / "Forest")
    shutil.rmtree(folder / "SeaLake")
    (folder / "Desert").mkdir()
    (folder / "River" / "River_1.tif").touch()
    for file in (folder / "Pasture").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="5 problem") as error:
        list_tiles(folder)
    for expected in (
        "Forest: class folder is missing",
        "SeaLake: class",
        "Desert: not",
        "River_1.tif: not a JPEG",
        "empty",
    ):
        assert expected in str(error.value)


def test_tiles_are_decoded_in_the_order_asked_for(data):
    folder = data / "EuroSAT_RGB"
    files = list_tiles(folder)["file"].iloc[::-1]
    tiles = load_tiles(folder, files)
    assert tiles.shape == (len(files), 64, 64, 3)
    assert tiles.dtype == np.uint8
    for position in (0, 17, len(files) - 1):
        np.testing.assert_array_equal(tiles[position], np.asarray(Image.open(folder / files.iloc[position])))


def test_every_bad_file_is_listed(data):
    folder = data / "EuroSAT_RGB"
    Image.new("RGB", (65, 64)).save(folder / "River" / "River_2.jpg")
    Image.new("L", (64, 64)).save(folder / "River" / "River_3.jpg")
    (folder / "Forest" / "Forest_1.jpg").write_bytes(b"not an image")
    (folder / "Forest" / "Forest_2.jpg").write_bytes(b"")
    good = (folder / "Forest" / "Forest_3.jpg").read_bytes()
    (folder / "Forest" / "Forest_3.jpg").write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match="5 problem") as error:
        load_tiles(folder, list_tiles(folder)["file"])
    for expected in ("River_2.jpg: 65x64 RGB", "River_3.jpg: 64x64 L", "Forest_1.jpg", "Forest_2.jpg", "Forest_3.jpg"):
        assert expected in str(error.value)


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 1)() == 0, reason="root may read everything")
def test_unreadable_file_is_listed(data):
    (data / "EuroSAT_RGB" / "River" / "River_1.jpg").chmod(0)
    with pytest.raises(ValueError, match=r"River_1\.jpg.*Permission"):
        load_tiles(data / "EuroSAT_RGB", ["River/River_1.jpg"])
