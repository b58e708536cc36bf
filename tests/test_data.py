"""Finding, downloading, listing and decoding the tiles, and every input that can be wrong."""

import hashlib
import http.server
import json
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
import rasterio
from conftest import REPOSITORY, ordinary_user
from draw_tiles import MEANS, draw_tiles
from PIL import Image

from eurosat_utils import (
    ARCHIVES,
    CLASSES,
    USER_AGENT,
    atomic_path,
    fetch_eurosat,
    list_tiles,
    load_tiles,
    path_setting,
)

PER_CLASS = 3


@pytest.fixture
def data(tmp_path):
    """A folder with a small data set in `EuroSAT_RGB/`."""
    draw_tiles(tmp_path / "data" / "EuroSAT_RGB", PER_CLASS)
    return tmp_path / "data"


def pack(source, archive):
    """Move what is in a folder into an archive."""
    made = shutil.make_archive(source.with_name("packing"), "zip", source)
    shutil.rmtree(source)
    archive.parent.mkdir(exist_ok=True)
    return Path(made).rename(archive)


@pytest.fixture
def archive(data):
    """The data set, packed, alone in a folder."""
    return pack(data, data / "EuroSAT_RGB.zip")


def names(folder):
    """What is in a folder."""
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def no_network(monkeypatch):
    """Fail the test if anything is downloaded."""
    monkeypatch.setattr("pooch.create", lambda *_, **__: pytest.fail("must not download"))


@pytest.mark.parametrize("root", ["EuroSAT_RGB", "2750", ".", "EuroSAT_RGB/EuroSAT_RGB"])
def test_present_folder_is_used_as_it_is(tmp_path, no_network, root):
    draw_tiles(tmp_path / root, 1)
    assert fetch_eurosat(tmp_path).resolve() == (tmp_path / root).resolve()


@pytest.mark.parametrize("name", list(ARCHIVES))
@pytest.mark.parametrize("root", ["EuroSAT_RGB", "2750", ".", "a/b", "my files/old/EuroSAT_RGB"])
def test_present_archive_is_extracted_however_nested_and_with_litter(
    tmp_path, no_network, root, name
):
    draw_tiles(tmp_path / "source" / root, 1)
    for litter in ("__MACOSX/EuroSAT_RGB/River/._River_1.jpg", f"{root}/River/.DS_Store"):
        (tmp_path / "source" / litter).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / litter).touch()
    pack(tmp_path / "source", tmp_path / "data" / name)
    assert len(list_tiles(fetch_eurosat(tmp_path / "data"))) == len(CLASSES)
    assert names(tmp_path / "data") == {name, "EuroSAT_RGB"}


@pytest.mark.parametrize("name", ["EuroSAT_RGB.zip", "my tiles.v2.ZIP"])
def test_archive_itself_is_extracted_beside_it_and_found_there_again(archive, no_network, name):
    other = draw_tiles(archive.parent / "2750", 1)  # not what was asked for
    archive = archive.rename(archive.with_name(name))
    for _ in range(2):
        folder = fetch_eurosat(archive)
        assert folder == archive.with_suffix("")
        assert len(list_tiles(folder)) == 10 * PER_CLASS
    assert names(archive.parent) == {name, folder.name, other.name}


@pytest.mark.parametrize("name", ["missing.zip", "notes.txt"])
def test_file_that_is_no_archive_is_refused(tmp_path, no_network, name):
    (tmp_path / "notes.txt").touch()
    message = rf"DATA_DIR: .*{name} is neither a folder nor an existing \.zip archive"
    with pytest.raises(ValueError, match=message):
        fetch_eurosat(tmp_path / name)
    assert names(tmp_path) == {"notes.txt"}


def test_archive_with_backslashes_in_its_names_is_extracted(archive, no_network):
    with zipfile.ZipFile(archive) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in (contents | {"../../outside.jpg": b""}).items():
            member = zipfile.ZipInfo(name)
            member.filename = name.replace("/", "\\")
            file.writestr(member, content)
    folder = fetch_eurosat(archive.parent)
    assert load_tiles(folder, list_tiles(folder)["file"]).shape == (10 * PER_CLASS, 64, 64, 3)
    assert names(archive.parent) == {archive.name, folder.name}
    assert names(archive.parent.parent) == {"data"}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text"])
def test_damaged_archive_names_the_file_and_leaves_nothing(archive, no_network, damage):
    content = bytearray(archive.read_bytes())
    middle = slice(len(content) // 2, len(content) // 2 + 50)
    if damage == "truncated":
        del content[middle.start :]
    elif damage == "flipped":
        content[middle] = bytes(byte ^ 255 for byte in content[middle])
    else:
        content = b"<html>429 Too Many Requests</html>"
    archive.write_bytes(content)
    message = r"EuroSAT_RGB\.zip is damaged or not a zip archive.*Delete it"
    with pytest.raises(ValueError, match=message):
        fetch_eurosat(archive.parent)
    assert names(archive.parent) == {archive.name}


def test_extraction_never_touches_a_folder_that_is_in_the_way(archive, no_network):
    (archive.parent / "EuroSAT_RGB").mkdir()
    (archive.parent / "EuroSAT_RGB" / "notes.txt").write_text("mine")
    message = r"EuroSAT_RGB exists but does not hold EuroSAT\. Move it away"
    for place in (archive.parent, archive):
        with pytest.raises(ValueError, match=message):
            fetch_eurosat(place)
    assert names(archive.parent / "EuroSAT_RGB") == {"notes.txt"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", r"EuroSAT\.zip does not contain the EuroSAT class folders AnnualCrop"),
        ("large", r"EuroSAT\.zip would fill 0\.0 GB of disk: it is not EuroSAT's RGB tiles"),
        ("classes", r"(?s)2 problem.*zip/Forest: class folder is missing.*zip/Desert: not an Euro"),
        ("13 bands", r"(?s)30 problem.*zip/AnnualCrop/AnnualCrop_1\.tif: not.*the other EuroSAT"),
    ],
)
def test_archive_of_something_else_is_refused(data, no_network, monkeypatch, content, message):
    folder = data / "EuroSAT_RGB"
    if content == "text":
        shutil.rmtree(folder)
        (data / "readme.txt").write_text("nothing here")
    elif content == "classes":
        (folder / "Forest").rename(folder / "Desert")
    elif content == "13 bands":
        for file in folder.glob("*/*"):
            file.rename(file.with_suffix(".tif"))
    else:
        monkeypatch.setattr("eurosat_utils.MAX_DATA_BYTES", 10_000)
    pack(data, data / "EuroSAT.zip")
    with pytest.raises(ValueError, match=message):
        fetch_eurosat(data)
    assert names(data) == {"EuroSAT.zip"}


@pytest.mark.parametrize(
    "name", ["../outside.jpg", "/outside.jpg", "EuroSAT_RGB/River/../../../outside.jpg"]
)
def test_archive_never_writes_outside_its_folder(archive, no_network, name):
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"")
    assert len(list_tiles(fetch_eurosat(archive.parent))) >= 10 * PER_CLASS
    assert names(archive.parent.parent) == {"data"}
    assert not Path("/outside.jpg").exists()


def test_link_in_an_archive_becomes_a_file_that_is_no_tile(archive, no_network):
    link = zipfile.ZipInfo("EuroSAT_RGB/River/River_99.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(link, "/etc/passwd")
    folder = fetch_eurosat(archive.parent)
    assert not (folder / "River" / "River_99.jpg").is_symlink()
    with pytest.raises(ValueError, match=r"1 problem.*\n.*River_99\.jpg: cannot identify"):
        load_tiles(folder, list_tiles(folder)["file"])


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


def test_full_disk_leaves_no_half_extracted_folder(archive, no_network):
    message = r"EuroSAT_RGB\.zip cannot be extracted to .*\(.*File too large.*\)"
    with nearly_full_disk(500), pytest.raises(ValueError, match=message):
        fetch_eurosat(archive.parent)
    assert names(archive.parent) == {archive.name}
    assert len(list_tiles(fetch_eurosat(archive.parent))) == 10 * PER_CLASS


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # Keras with NumPy 2
def test_full_disk_while_saving_keeps_what_was_there(tmp_path):
    path = tmp_path / "a.weights.h5"
    path.write_text("before")
    network = keras.Sequential([keras.Input((100,)), keras.layers.Dense(1000)])
    message = r"(?s)a\.weights\.h5 could not be written \(.*File too large.*Make room"
    full = nearly_full_disk(100_000)
    with full, pytest.raises(OSError, match=message), atomic_path(path) as temporary:
        network.save_weights(temporary)
    assert names(tmp_path) == {"a.weights.h5"}
    assert path.read_text() == "before"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine in place of the published sources; returns the requests."""
    draw_tiles(tmp_path / "source" / "2750", 1)
    content = pack(tmp_path / "source", tmp_path / "good.zip").read_bytes()
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
            bodies = {"/wrong": b"x" * len(content), "/breaks": content[:5000]}
            self.wfile.write(bodies.get(self.path, content))

        def log_message(self, *_):
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)  # between two attempts

    def publish(first, second):
        sha256, url = hashlib.sha256(content).hexdigest(), f"http://127.0.0.1:{web.server_port}"
        sources = zip(ARCHIVES, (first, second), strict=True)
        archives = {name: (f"{url}/{page}", sha256) for name, page in sources}
        monkeypatch.setattr("eurosat_utils.ARCHIVES", archives)
        return requests

    yield publish
    over.set()
    web.shutdown()


@pytest.mark.parametrize(
    "first", ["good", "recovers", "forbidden", "missing", "busy", "wrong", "breaks", "hangs"]
)
def test_download_verifies_tries_again_and_falls_back_to_the_mirror(
    tmp_path, server, monkeypatch, first
):
    monkeypatch.setattr("eurosat_utils.TIMEOUT", 0.2)
    requests = server(first, "good")
    assert len(list_tiles(fetch_eurosat(tmp_path / "new" / "data"))) == len(CLASSES)
    expected = {"good": ["/good"], "recovers": ["/recovers"] * 2}
    assert [page for page, _ in requests] == expected.get(first, [f"/{first}"] * 2 + ["/good"])
    assert {agent for _, agent in requests} == {USER_AGENT}


def test_interrupted_download_leaves_nothing_and_starts_over(tmp_path, server, monkeypatch):
    server("good", "good")

    def interrupt(*_, **__):
        yield b"PK"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("requests.Response.iter_content", interrupt)
        fetch_eurosat(tmp_path / "data")
    assert names(tmp_path / "data") == set()
    monkeypatch.setattr("sys.stderr", None)  # a program without a console shows no bar
    assert len(list_tiles(fetch_eurosat(tmp_path / "data"))) == len(CLASSES)


def test_when_nothing_works_the_message_says_what_was_tried_and_what_to_do(
    tmp_path, server, monkeypatch
):
    def message():
        with pytest.raises(FileNotFoundError, match="could not be downloaded") as error:
            fetch_eurosat(tmp_path / "data")
        assert names(tmp_path / "data") == set()
        return str(error.value)

    server("forbidden", "wrong")
    for expected in ("/forbidden", "403", "/wrong", "SHA256", "EuroSAT_RGB.zip", "browser"):
        assert expected in message()
    assert str(tmp_path / "data") in message()
    assert message().endswith("python tests/demo.py")
    server("good", "good")
    monkeypatch.setattr("sys.stderr", None)  # no bar, which would go to a file of pytest's
    with nearly_full_disk():
        assert message().count("File too large") == 2
    nobody = {"EuroSAT.zip": ("http://127.0.0.1:9/EuroSAT.zip", "0" * 64)}
    monkeypatch.setattr("eurosat_utils.ARCHIVES", nobody)
    assert "ConnectionError" in message()


def test_several_at_once_share_one_data_set(tmp_path, server):
    server("good", "good")
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(fetch_eurosat, [tmp_path / "data"] * 4))
    assert {len(list_tiles(folder)) for folder in folders} == {len(CLASSES)}
    assert names(tmp_path / "data") == {"EuroSAT_RGB.zip", "EuroSAT_RGB"}


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
def test_certificate_that_nobody_trusts_is_refused(tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    web = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    web.socket = context.wrap_socket(web.socket, server_side=True)
    threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr("pooch.core.time.sleep", lambda _: None)
    url = f"https://localhost:{web.server_port}/EuroSAT.zip"
    monkeypatch.setattr("eurosat_utils.ARCHIVES", {"EuroSAT.zip": (url, "0" * 64)})
    message = r"(?s)https://localhost.*CERTIFICATE_VERIFY_FAILED.*browser"
    with pytest.raises(FileNotFoundError, match=message):
        fetch_eurosat(tmp_path / "data")
    web.shutdown()
    assert names(tmp_path / "data") == set()


def test_tiles_are_listed_in_one_order_and_decoded_in_the_order_asked_for(data):
    folder = data / "EuroSAT_RGB"
    (folder / "River" / ".DS_Store").touch()
    (folder / "River" / "Thumbs.db").touch()
    tiles = list_tiles(folder)
    assert tiles["file"].is_monotonic_increasing
    assert tiles["file"].iloc[0] == "AnnualCrop/AnnualCrop_1.jpg"
    assert tiles["label"].value_counts().to_dict() == dict.fromkeys(CLASSES, PER_CLASS)
    assert (tiles["file"].str.split("/").str[0] == tiles["label"]).all()
    files = tiles["file"].iloc[::-1]
    images = load_tiles(folder, files)
    assert images.dtype == np.uint8
    for image, file in zip(images, files, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.open(folder / file)))


def test_every_problem_of_the_folders_is_listed(data):
    folder = data / "EuroSAT_RGB"
    shutil.rmtree(folder / "Forest")
    (folder / "SeaLake").rename(folder / "Desert")
    (folder / "River" / "River_1.tif").touch()
    for file in (folder / "Pasture").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="5 problem") as error:
        list_tiles(folder)
    for expected in (
        "Forest: class folder is m",
        "SeaLake: class",
        "Desert: not",
        "Pasture: class",
    ):
        assert expected in str(error.value)
    assert "River_1.tif: not a JPEG tile" in str(error.value)
    assert "13 bands" not in str(error.value)


def test_the_other_eurosat_is_named_in_a_short_message(data):
    for file in list(data.glob("*/*/*")):
        file.rename(file.with_suffix(".tif"))
    with pytest.raises(ValueError, match="30 problem") as error:
        list_tiles(data / "EuroSAT_RGB")
    lines = str(error.value).splitlines()
    assert len(lines) == 13
    assert lines[1].endswith("AnnualCrop_1.tif: not a JPEG tile")
    assert lines[-2:] == [
        "  ... and 20 more",
        "This is the other EuroSAT, with 13 bands: use the RGB one, EuroSAT_RGB.zip.",
    ]


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
    Image.new("RGB", (64, 64)).save(folder / "SeaLake" / "SeaLake_3.jpg", "PNG")  # good enough
    with pytest.raises(ValueError, match="7 problem") as error:
        load_tiles(folder, list_tiles(folder)["file"])
    for expected in (
        "River_2.jpg: 65x64 RGB", "River_3.jpg: 64x64 L", "Forest_1.jpg", "Forest_2.jpg",
        "Forest_3.jpg", "SeaLake_1.jpg: 64x64 CMYK", "SeaLake_2.jpg: 64x64 RGBA",
    ):  # fmt: skip
        assert expected in str(error.value)


def test_folders_and_files_may_have_any_name_and_be_links(tmp_path):
    folder = draw_tiles(tmp_path / "meine Daten \u00fc" / "EuroSAT_RGB", 1)
    (folder / "River" / "River_1.jpg").rename(folder / "River" / "Fluß 河.jpg")
    (tmp_path / "link").symlink_to(folder.parent, target_is_directory=True)
    found = fetch_eurosat(tmp_path / "link")
    tiles = list_tiles(found)
    assert "River/Fluß 河.jpg" in set(tiles["file"])
    assert load_tiles(found, tiles["file"]).shape == (10, 64, 64, 3)


def test_unreadable_and_unwritable_folders_and_a_quiet_start(data):
    """As an ordinary user; what cannot be read or written is named; nothing else is on stderr."""
    unreadable = data / "EuroSAT_RGB" / "River" / "River_1.jpg"
    sealed = data.parent / "sealed"
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
print("end", file=sys.stderr)
"""
    command = [*ordinary_user(), sys.executable, "-c", program, str(data), str(sealed)]
    options = {"cwd": REPOSITORY, "capture_output": True, "text": True, "check": True}
    process = subprocess.run(command, **options)
    for expected in (
        rf"\({10 * PER_CLASS - 1}, 64, 64, 3\)",
        r"ValueError 1 problem.*\n.*River_1\.jpg: .*Permission denied",
        r"ValueError .*EuroSAT\.zip cannot be extracted to .*Permission denied.*another DATA_DIR",
        r"OSError .*a\.csv could not be written \(.*Permission denied.*choose another folder",
    ):
        assert re.search(expected, process.stdout)
    assert process.stderr == "end\n"
    assert names(sealed) == {"EuroSAT.zip"}


def test_import_without_a_console_and_with_another_keras_json(tmp_path):
    settings = {"floatx": "float16", "backend": "jax", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    program = """
import os, sys
os.close(2)
sys.stderr = None
import eurosat_utils, keras
layer = keras.layers.Dense(1)
layer.build((None, 1))
print(layer.kernel.dtype, layer.compute_dtype, keras.config.floatx())
print(keras.config.backend(), keras.config.image_data_format())
"""
    environment = os.environ | {"KERAS_HOME": str(tmp_path)}
    options = {"cwd": REPOSITORY, "env": environment, "capture_output": True, "text": True}
    process = subprocess.run([sys.executable, "-c", program], check=True, **options)
    assert process.stdout.split() == 3 * ["float32"] + ["tensorflow", "channels_last"]


def test_path_is_taken_as_it_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("2750").mkdir()
    for value in ("2750", "a b/\u00fc", Path("x"), "~nobody-has-this-name", "."):
        assert path_setting("DATA_DIR", value) == Path(value)
    assert path_setting("DATA_DIR", "~/tiles") == Path.home() / "tiles"
    assert path_setting("DATA_DIR", 2750) == Path("2750")  # it is there


@pytest.mark.parametrize(
    "value", [7, 2024, 202406, 1000.0, True, None, "", " ", ["a"], 1, b"data", float("nan")]
)
def test_what_papermill_made_of_a_path_is_refused_unless_it_can_only_mean_one(
    tmp_path, monkeypatch, value
):
    monkeypatch.chdir(tmp_path)
    for name in ("1000.0", "2024", "02024", "2024_06"):  # 2024 and 02024: which of them?
        Path(name).mkdir()
    with pytest.raises(ValueError, match=r"^RESULTS_DIR must be a path, not .* -p RESULTS_DIR \./"):
        path_setting("RESULTS_DIR", value)


def test_drawn_tiles_have_eurosats_colours_and_are_the_same_each_time(tmp_path):
    folder = draw_tiles(tmp_path / "a", 20)
    tiles = list_tiles(folder)
    images = load_tiles(folder, tiles["file"])
    for label, mean in MEANS.items():
        drawn = images[tiles["label"] == label].mean(axis=(0, 1, 2))
        np.testing.assert_allclose(drawn, mean, atol=20)
    draw_tiles(tmp_path / "b", 20)
    np.testing.assert_array_equal(load_tiles(tmp_path / "b", tiles["file"]), images)
    draw_tiles(tmp_path / "c", 20, seed=1)
    assert (load_tiles(tmp_path / "c", tiles["file"]) != images).any(axis=(1, 2, 3)).all()


def test_demonstration_draws_its_own_data_and_says_so_in_the_title(tmp_path):
    import demo  # here, because ruff sorts it elsewhere once there is a folder demo/

    demo.prepare(tmp_path, per_class=1)
    assert len(list_tiles(fetch_eurosat(tmp_path / "data"))) == len(CLASSES)
    with rasterio.open(tmp_path / "landscape.tif") as file:
        assert (file.crs.to_epsg(), file.res) == (32633, (10, 10))
        np.testing.assert_array_equal(file.read(), demo.draw_scene().transpose(2, 0, 1))
    for name in demo.RUNS:
        assert "drawn tiles, not EuroSAT" in demo.page(name).cells[0].source.splitlines()[0]
        tags = [cell.metadata.get("tags", []) for cell in demo.page(name).cells]
        (place,) = [index for index, tag in enumerate(tags) if "parameters" in tag]
        for setting in demo.SETTINGS | demo.RUNS[name]:
            assert f"{setting} = " in demo.page(name).cells[place].source
