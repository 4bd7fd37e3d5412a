"""Downloads, against a server on this machine: resuming, hashes, unpacking."""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import itertools
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.base.errors import UserError
from harness.images import download as download_module
from harness.images.download import ARCHIVES, Archive, ResumableDownloader, download, extract
from harness.images.sources import find_data


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


FILES = {
    "bench/Set5/HR/a.png": png(1),
    "bench/Set5/HR/b.png": png(2),
    "bench/Set5/LR_bicubic/X2/ax2.png": png(3),
    "bench/Set5/LR_bicubic/X3/ax3.png": png(4),
    "bench/Set5/HR/notes.txt": b"no image",
}
FOLDERS = {"bench/Set5/HR": "Set5/HR", "bench/Set5/LR_bicubic/X2": "Set5/LR_bicubic/X2"}


def zip_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.mkdir("bench")
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_bytes(files: dict[str, bytes]) -> bytes:
    """With a link to a file elsewhere, which is not unpacked."""
    buffer = io.BytesIO()
    folder, link = tarfile.TarInfo("bench"), tarfile.TarInfo("bench/Set5/HR/c.png")
    folder.type = tarfile.DIRTYPE
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        archive.addfile(link)
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves one content; can cut each answer after some bytes, or ignore ranges."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.cut_after: int | None = None
        self.ranges = True
        self.shift = 0  # how far ranges are answered wrongly
        self.status = 200
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/bench.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append(asked)
        content, start, total = self.server.content, 0, len(self.server.content)
        if self.server.status != 200:
            self.send_error(self.server.status)
            return
        if asked and self.server.ranges:
            match = re.fullmatch(r"bytes=(\d+)-", asked)
            assert match
            start = int(match[1]) + self.server.shift
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut_after])
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server(zip_bytes(FILES))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(download_module.time, "sleep", waits.append)
    return waits


def archive_of(server: Server) -> Archive:
    digest = hashlib.sha256(server.content).hexdigest()
    return Archive(server.url, f"sha256:{digest}", FOLDERS, {"Set5/HR": 2})


def part_of(folder: Path, content: bytes) -> Path:
    """What an earlier download has left of the archive."""
    part = folder / ".downloads" / "bench.zip.part"
    part.parent.mkdir()
    part.write_bytes(content)
    return part


def names(folder: Path) -> list[str]:
    """Files but for the lock, which stays."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")
    return sorted(p.relative_to(folder).as_posix() for p in files)


EXPECTED = ["Set5/HR/a.png", "Set5/HR/b.png", "Set5/LR_bicubic/X2/ax2.png"]


def test_download_and_unpack(server: Server, tmp_path: Path) -> None:
    assert download(archive_of(server), tmp_path)
    assert names(tmp_path) == EXPECTED
    assert (tmp_path / "Set5/HR/b.png").read_bytes() == FILES["bench/Set5/HR/b.png"]
    assert find_data(tmp_path).test_sets == ["Set5"]
    assert not download(archive_of(server), tmp_path)  # there already
    assert len(server.requests) == 1


def test_a_cut_connection_goes_on(server: Server, tmp_path: Path) -> None:
    server.cut_after = 3000
    assert download(archive_of(server), tmp_path)
    assert names(tmp_path) == EXPECTED
    total = len(server.content)
    assert server.requests == [None, *(f"bytes={n}-" for n in range(3000, total, 3000))]


def test_a_second_run_goes_on(server: Server, tmp_path: Path, no_waiting: list[float]) -> None:
    part = part_of(tmp_path, server.content[:5000])
    server.status = 503
    with pytest.raises(UserError, match=r"cannot download .*503.*to continue from 0\.0 MB"):
        download(archive_of(server), tmp_path)
    assert part.stat().st_size == 5000
    assert no_waiting == [1, 2, 4, 8, 16]
    server.status = 200
    server.requests.clear()
    assert download(archive_of(server), tmp_path)
    assert server.requests == ["bytes=5000-"]
    assert names(tmp_path) == EXPECTED


@pytest.mark.parametrize("extra", [0, 10], ids=["whole part", "part too long"])
def test_a_part_that_needs_nothing_more(server: Server, tmp_path: Path, extra: int) -> None:
    part_of(tmp_path, server.content + b"x" * extra)
    assert download(archive_of(server), tmp_path)
    assert len(server.requests) == (2 if extra else 1)
    assert names(tmp_path) == EXPECTED


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    part = tmp_path / "part"
    part.write_bytes(b"old")
    ResumableDownloader(part)(server.url, tmp_path / "whole", None)
    assert (tmp_path / "whole").read_bytes() == server.content
    assert not part.exists()


def test_a_wrong_range_is_not_appended(server: Server, tmp_path: Path) -> None:
    server.shift = 1
    part = tmp_path / "part"
    part.write_bytes(server.content[:100])
    with pytest.raises(UserError, match="another range"):
        ResumableDownloader(part, retries=1)(server.url, tmp_path / "whole", None)
    assert part.read_bytes() == server.content[:100]


def test_any_error_of_the_network_is_tried_again_and_told_as_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_waiting: list[float]
) -> None:
    read = http.client.HTTPResponse.read
    failures = iter([True, True, False])

    def failing(response: http.client.HTTPResponse, size: int) -> bytes:
        if next(failures, False):
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        return read(response, size)

    monkeypatch.setattr(http.client.HTTPResponse, "read", failing)
    assert download(archive_of(server), tmp_path)
    assert no_waiting == [1, 2]

    failures = itertools.repeat(True)
    other = tmp_path / "other"
    with pytest.raises(UserError, match=r"cannot download .*: No route to host; run the same"):
        download(archive_of(server), other)


def test_two_at_once_download_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(download, archive_of(server), tmp_path) for _ in range(2)]
    assert sorted(run.result() for run in runs) == [False, True]
    assert len(server.requests) == 1
    assert names(tmp_path) == EXPECTED


def test_an_interrupted_unpacking_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it stopped: low-resolution images are not left out."""
    write = download_module.write_atomic
    for written in range(3):
        folder = tmp_path / str(written)
        left = iter(range(written))

        def interrupted(*args: Any, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            write(*args)

        monkeypatch.setattr(download_module, "write_atomic", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download(archive_of(server), folder)
        monkeypatch.setattr(download_module, "write_atomic", write)
        assert download(archive_of(server), folder)
        assert names(folder) == EXPECTED


@pytest.mark.parametrize(
    ("status", "changes", "place", "message"),
    [
        (404, {}, "data", "404"),
        (200, {"known_hash": "md5:" + "0" * 32}, "data", "not have the known hash md5:000"),
        (200, {"images": {"Set5/HR": 3}}, "data", "does not hold the expected images"),
        (200, {}, "file", r"cannot write .*file"),
    ],
    ids=["missing page", "wrong hash", "incomplete archive", "no folder"],
)
def test_what_is_not_tried_again(
    status: int, changes: dict[str, Any], place: str, message: str, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    server.status = status
    with pytest.raises(UserError, match=message):
        download(replace(archive_of(server), **changes), tmp_path / place)
    assert len(server.requests) == (0 if place == "file" else 1)
    if "images" not in changes:
        assert names(tmp_path) == ["file"]


def unpack(content: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "archive"
    path.write_bytes(content)
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    extract(path, out, Archive("", "", FOLDERS, {}))
    return out


BAD_NAMES = ["../a.png", "bench/../../a.png", "/tmp/a.png", "bench/Set5/HR/../../../../a.png"]


@pytest.mark.parametrize("pack", [zip_bytes, tar_bytes])
def test_only_the_chosen_folders_are_written(
    pack: Callable[[dict[str, bytes]], bytes], tmp_path: Path
) -> None:
    """Also where names or links lead elsewhere, which an archive of known hash does not do."""
    for _ in range(2):  # an image that is there already is replaced
        out = unpack(pack(FILES | {name: png(5) for name in BAD_NAMES}), tmp_path)
        assert names(tmp_path) == ["archive", *(f"out/{name}" for name in EXPECTED)]
        assert (out / EXPECTED[0]).read_bytes() == FILES["bench/Set5/HR/a.png"]
        (out / EXPECTED[0]).write_bytes(b"half")


def test_damaged_archives(tmp_path: Path) -> None:
    content = zip_bytes(FILES)
    for bad in (b"no archive", content[:-100], tar_bytes(FILES)[:2000]):
        with pytest.raises(UserError, match="cannot unpack"):
            unpack(bad, tmp_path)
    flipped = bytearray(content)
    flipped[content.index(FILES["bench/Set5/HR/a.png"]) + 100] ^= 1
    with pytest.raises(UserError, match=r"cannot unpack .*CRC"):
        unpack(bytes(flipped), tmp_path)


def test_registry() -> None:
    assert set(ARCHIVES) == {"div2k", "benchmark"}
    for archive in ARCHIVES.values():
        assert archive.url.startswith("https://")
        assert re.fullmatch(r"md5:[0-9a-f]{32}", archive.known_hash)  # else members need checks
        assert set(archive.images) <= set(archive.folders.values())
