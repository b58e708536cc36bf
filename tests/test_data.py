"""Finding, downloading, listing and decoding the tiles, and every input that can be wrong."""

import hashlib
import http.server
import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import REPOSITORY, TILES_PER_CLASS, make_tiles, ordinary_user
from PIL import Image

import eurosat_utils
from eurosat_utils import ARCHIVES, CLASSES, USER_AGENT, atomic_path, fetch_eurosat, list_tiles, load_tiles


@pytest.fixture
def no_network(monkeypatch):
    """Fail the test if anything is downloaded."""
    monkeypatch.setattr("pooch.create", lambda *_, **__: pytest.fail("must not download"))


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


@pytest.mark.parametrize("name", ["../outside.jpg", "/outside.jpg", "EuroSAT_RGB/River/../../../outside.jpg"])
def test_archive_never_writes_outside_its_folder(data, no_network, name):
    archive = Path(shutil.make_archive(data / "EuroSAT_RGB", "zip", data, "EuroSAT_RGB"))
    shutil.rmtree(data / "EuroSAT_RGB")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"")
    assert len(list_tiles(fetch_eurosat(data))) >= 10 * TILES_PER_CLASS
    assert not list(data.parent.glob("outside.jpg"))
    assert not Path("/outside.jpg").exists()


def test_link_in_an_archive_becomes_a_file_that_is_no_tile(data, no_network):
    archive = Path(shutil.make_archive(data / "EuroSAT_RGB", "zip", data, "EuroSAT_RGB"))
    shutil.rmtree(data / "EuroSAT_RGB")
    link = zipfile.ZipInfo("EuroSAT_RGB/River/River_99.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(link, "/etc/passwd")
    folder = fetch_eurosat(data)
    assert not (folder / "River" / "River_99.jpg").is_symlink()
    with pytest.raises(ValueError, match=r"1 problem.*\n.*River_99\.jpg: cannot identify"):
        load_tiles(folder, list_tiles(folder)["file"])


def refuse(data, message):
    """Check that the archive is refused with a message and nothing of it is left."""
    shutil.rmtree(data / "EuroSAT_RGB")
    with pytest.raises(ValueError, match=message):
        fetch_eurosat(data)
    assert [path.name for path in data.iterdir()] == ["EuroSAT_RGB.zip"]


def test_archive_that_would_fill_the_disk_is_refused(data, no_network, monkeypatch):
    shutil.make_archive(data / "EuroSAT_RGB", "zip", data, "EuroSAT_RGB")
    monkeypatch.setattr("eurosat_utils.MAX_DATA_BYTES", 10_000)
    refuse(data, r"EuroSAT_RGB\.zip would fill 0\.0 GB of disk: it is not EuroSAT")


def test_archive_with_missing_or_surplus_classes_is_refused(data, no_network):
    shutil.rmtree(data / "EuroSAT_RGB" / "Forest")
    (data / "EuroSAT_RGB" / "Desert").mkdir()
    shutil.make_archive(data / "EuroSAT_RGB", "zip", data, "EuroSAT_RGB")
    refuse(data, r"(?s)2 problem.*EuroSAT_RGB\.zip/Forest: class folder is missing.*zip/Desert: not an EuroSAT class")


@pytest.mark.parametrize("root", ["my files/download/EuroSAT_RGB", "eurosat/2750", "a/b", "."])
def test_archive_may_be_nested_and_have_litter(tmp_path, no_network, root):
    make_tiles(tmp_path / "source" / root, per_class=1)
    for litter in ("__MACOSX/EuroSAT_RGB/River/._River_1.jpg", ".DS_Store", f"{root}/River/.DS_Store"):
        (tmp_path / "source" / litter).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / litter).touch()
    (tmp_path / "data").mkdir()
    shutil.make_archive(tmp_path / "data" / "EuroSAT", "zip", tmp_path / "source")
    assert len(list_tiles(fetch_eurosat(tmp_path / "data"))) == len(CLASSES)


@contextmanager
def nearly_full_disk(size=2000):
    """Let no file become larger than `size` bytes, which stops a write as a full disk does."""
    resource = pytest.importorskip("resource")  # not on Windows
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_leaves_no_half_extracted_folder(data, no_network):
    shutil.make_archive(data / "EuroSAT_RGB", "zip", data, "EuroSAT_RGB")
    shutil.rmtree(data / "EuroSAT_RGB")
    message = r"EuroSAT_RGB\.zip cannot be extracted to .*\(.*File too large.*\)"
    with nearly_full_disk(), pytest.raises(ValueError, match=message):
        fetch_eurosat(data)
    assert [path.name for path in data.iterdir()] == ["EuroSAT_RGB.zip"]
    assert len(list_tiles(fetch_eurosat(data))) == 10 * TILES_PER_CLASS


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine in place of the two published sources; returns what was asked of it."""
    make_tiles(tmp_path / "source" / "2750", per_class=1)
    content = Path(shutil.make_archive(tmp_path / "good", "zip", tmp_path / "source")).read_bytes()
    requests, over = [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            is_first = self.path not in [path for path, _ in requests]
            requests.append((self.path, self.headers["User-Agent"]))
            if self.path == "/hangs":
                over.wait(30)
            status = {"/forbidden": 403, "/missing": 404, "/busy": 429}.get(self.path, 200)
            self.send_response(500 if self.path == "/recovers" and is_first else status)
            self.send_header("Retry-After", "3600")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write({"/wrong": b"x" * len(content), "/breaks": content[:5000]}.get(self.path, content))

        def log_message(self, *_):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)  # between two attempts

    def publish(first, second):
        sha256, url = hashlib.sha256(content).hexdigest(), f"http://127.0.0.1:{web.server_port}"
        sources = {"EuroSAT_RGB.zip": (f"{url}/{first}", sha256), "EuroSAT.zip": (f"{url}/{second}", sha256)}
        monkeypatch.setattr("eurosat_utils.ARCHIVES", sources)
        return requests

    yield publish
    over.set()
    web.shutdown()


@pytest.mark.parametrize("first", ["good", "recovers", "forbidden", "missing", "busy", "wrong", "breaks", "hangs"])
def test_download_verifies_tries_again_and_falls_back_to_the_mirror(tmp_path, server, monkeypatch, first):
    monkeypatch.setattr("eurosat_utils.TIMEOUT", 0.5)
    requests = server(first, "good")
    assert len(list_tiles(fetch_eurosat(tmp_path / "new" / "data"))) == len(CLASSES)
    expected = {"good": ["/good"], "recovers": ["/recovers"] * 2}.get(first, [f"/{first}"] * 2 + ["/good"])
    assert [path for path, _ in requests] == expected
    assert {agent for _, agent in requests} == {USER_AGENT}


def test_interrupted_download_leaves_nothing_and_starts_over(tmp_path, server, monkeypatch):
    server("good", "good")

    def interrupt(*_, **__):
        yield b"PK"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("requests.Response.iter_content", interrupt)
        fetch_eurosat(tmp_path / "data")
    assert not any((tmp_path / "data").iterdir())
    assert len(list_tiles(fetch_eurosat(tmp_path / "data"))) == len(CLASSES)


def test_without_a_network_or_disk_the_message_says_so_and_nothing_is_left(tmp_path, server, monkeypatch):
    server("good", "good")
    with nearly_full_disk(), pytest.raises(FileNotFoundError, match=r"(?s)File too large.*File too large.*browser"):
        fetch_eurosat(tmp_path / "data")
    assert not any((tmp_path / "data").iterdir())
    monkeypatch.setattr("eurosat_utils.ARCHIVES", {"EuroSAT.zip": ("http://127.0.0.1:9/EuroSAT.zip", "0" * 64)})
    with pytest.raises(FileNotFoundError, match="(?s)could not be downloaded.*ConnectionError.*browser"):
        fetch_eurosat(tmp_path / "data")
    assert not any((tmp_path / "data").iterdir())


def test_several_at_once_share_one_data_set(tmp_path, server):
    server("good", "good")
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(fetch_eurosat, [tmp_path / "data"] * 4))
    assert {len(list_tiles(folder)) for folder in folders} == {len(CLASSES)}
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"EuroSAT_RGB.zip", "EuroSAT_RGB"}


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
    Image.new("CMYK", (64, 64)).save(folder / "SeaLake" / "SeaLake_1.jpg")
    Image.new("RGBA", (64, 64)).save(folder / "SeaLake" / "SeaLake_2.jpg", "PNG")
    Image.new("RGB", (64, 64)).save(folder / "SeaLake" / "SeaLake_3.jpg", "PNG")  # as good as a JPEG
    with pytest.raises(ValueError, match="7 problem") as error:
        load_tiles(folder, list_tiles(folder)["file"])
    for expected in (
        "River_2.jpg: 65x64 RGB", "River_3.jpg: 64x64 L", "Forest_1.jpg", "Forest_2.jpg", "Forest_3.jpg",
        "SeaLake_1.jpg: 64x64 CMYK", "SeaLake_2.jpg: 64x64 RGBA",
    ):  # fmt: skip
        assert expected in str(error.value)


def test_folders_and_files_may_have_any_name_and_be_links(tmp_path):
    folder = make_tiles(tmp_path / "meine Daten \u00fc" / "EuroSAT_RGB")
    (folder / "River" / "River_1.jpg").rename(folder / "River" / "Fluß 河.jpg")
    (tmp_path / "link").symlink_to(folder.parent, target_is_directory=True)
    found = fetch_eurosat(tmp_path / "link")
    tiles = list_tiles(found)
    assert "River/Fluß 河.jpg" in set(tiles["file"])
    assert load_tiles(found, tiles["file"]).shape == (10 * TILES_PER_CLASS, 64, 64, 3)


def test_unreadable_and_unwritable_folders(data):
    """As an ordinary user: tiles are read from a folder that is read-only; what cannot be read or written is named."""
    unreadable, sealed = data / "EuroSAT_RGB" / "River" / "River_1.jpg", data.parent / "sealed"
    sealed.mkdir()
    shutil.make_archive(sealed / "EuroSAT", "zip", data)
    unreadable.chmod(0)
    for folder in (data, data / "EuroSAT_RGB", sealed):
        folder.chmod(0o555)
    program = """
import sys
from eurosat_utils import atomic_path, fetch_eurosat, list_tiles, load_tiles
data, sealed = sys.argv[1:]
folder = fetch_eurosat(data)
tiles = list_tiles(folder)["file"]
print(load_tiles(folder, tiles[tiles != "River/River_1.jpg"]).shape)
def write():
    with atomic_path(sealed + "/results/a.csv") as path:
        path.touch()
for fails in (lambda: load_tiles(folder, tiles), lambda: fetch_eurosat(sealed), write):
    try:
        fails()
    except (ValueError, OSError) as error:
        print(type(error).__name__, error)
"""
    command = [*ordinary_user(), sys.executable, "-c", program, str(data), str(sealed)]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    text = process.stdout
    assert f"({10 * TILES_PER_CLASS - 1}, 64, 64, 3)" in text
    assert re.search(r"ValueError 1 problem.*\n.*River_1\.jpg: .*Permission denied", text)
    assert re.search(r"ValueError .*EuroSAT\.zip cannot be extracted to .*Permission denied.*another DATA_DIR", text)
    assert re.search(r"OSError .*a\.csv could not be written \(.*Permission denied.*choose another folder", text)
    assert [path.name for path in sealed.iterdir()] == ["EuroSAT.zip"]


def test_full_disk_while_saving_keeps_what_was_there(tmp_path):
    path = tmp_path / "a.weights.h5"
    path.write_text("before")
    network = keras.Sequential([keras.Input((100,)), keras.layers.Dense(1000)])
    message = r"(?s)a\.weights\.h5 could not be written \(.*File too large.*Make room"
    with nearly_full_disk(100_000), pytest.raises(OSError, match=message), atomic_path(path) as temporary:
        network.save_weights(temporary)
    assert [file.name for file in tmp_path.iterdir()] == ["a.weights.h5"]
    assert path.read_text() == "before"


def test_two_processes_at_once_share_one_data_set(tmp_path, server):
    server("good", "good")
    program = f"import eurosat_utils as e; e.ARCHIVES = {eurosat_utils.ARCHIVES!r}; print(e.fetch_eurosat('data'))"
    command = [sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    options = {
        "cwd": tmp_path,
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    processes = [subprocess.Popen(command, **options) for _ in range(2)]
    for process in processes:
        text, _ = process.communicate(timeout=120)
        assert process.returncode == 0, text
    assert len(list_tiles(tmp_path / "data" / "EuroSAT_RGB")) == len(CLASSES)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"EuroSAT_RGB.zip", "EuroSAT_RGB"}


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_certificate_that_nobody_trusts_is_refused(tmp_path, server, monkeypatch):
    requests = server("good", "good")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    web = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    web.socket = context.wrap_socket(web.socket, server_side=True)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    url = f"https://localhost:{web.server_port}/EuroSAT.zip"
    monkeypatch.setattr("eurosat_utils.ARCHIVES", {"EuroSAT.zip": (url, "0" * 64)})
    with pytest.raises(FileNotFoundError, match=r"(?s)https://localhost.*CERTIFICATE_VERIFY_FAILED.*browser"):
        fetch_eurosat(tmp_path / "data")
    web.shutdown()
    assert requests == []
    assert not any((tmp_path / "data").iterdir())
