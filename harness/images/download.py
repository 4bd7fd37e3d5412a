"""Download DIV2K and the benchmark sets: resumable, hash checked, files whole or not at all.

Nothing is unpacked before the archive's hash is checked, and files go only into the folders that
:class:`Archive` names: members of an archive need no checks of their own.
"""

from __future__ import annotations

import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from rich.progress import Progress, TaskID

from ..base.errors import UserError
from ..base.files import write_atomic
from ..base.locks import lock
from ..base.progress import progress_bar
from .files import SUFFIXES, find_images

_CHUNK = 1 << 20
_MB = 1e6


@dataclass(frozen=True)
class Archive:
    """A published archive of images, zip or tar.

    Attributes:
        url: address; its last part is the name of the file.
        known_hash: ``md5:…`` or ``sha256:…``.
        folders: folder in the archive: folder under the data folder; the rest is left out.
        images: folder under the data folder: images it must hold in the end.
        terms: terms of use, shown before the download.
    """

    url: str
    known_hash: str
    folders: Mapping[str, str]
    images: Mapping[str, int]
    terms: str = ""


_BENCHMARK_FOLDERS = [
    f"{name}/{sub}"
    for name in ("Set5", "Set14", "B100", "Urban100")
    for sub in ("HR", "LR_bicubic/X2", "LR_bicubic/X4")
]

#: The publishers give no hashes that we know of; the MD5 sums are those that public data
#: loaders check (torchSR both, several others that of DIV2K).
ARCHIVES = {
    "div2k": Archive(
        url="https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip",
        known_hash="md5:bdc2d9338d4e574fe81bf7d158758658",
        folders={"DIV2K_train_HR": "DIV2K/DIV2K_train_HR"},
        images={"DIV2K/DIV2K_train_HR": 800},
        terms="DIV2K (Agustsson and Timofte, CVPRW 2017), 3.5 GB: for academic research only",
    ),
    "benchmark": Archive(
        url="https://cv.snu.ac.kr/research/EDSR/benchmark.tar",
        known_hash="md5:4ace41d33c2384b97e6b320cd0afd6ba",
        folders={f"benchmark/{folder}": folder for folder in _BENCHMARK_FOLDERS},
        images={"Set5/HR": 5, "Set14/HR": 14, "B100/HR": 100, "Urban100/HR": 100},
        terms="Set5, Set14, B100, Urban100 as packed for EDSR (Lim et al., CVPRW 2017), 250 MB: "
        "for research",
    ),
}


def download(archive: Archive, folder: Path) -> bool:
    """Download an archive and unpack it under ``folder``; False if its images are there already.

    Raises:
        UserError: the download fails (a later call continues it), the hash is wrong, the archive
            is damaged or incomplete, or the disk is full.
    """
    if _is_complete(archive, folder):
        return False
    downloads = folder / ".downloads"
    file_name = PurePosixPath(archive.url).name
    with lock(downloads / f"{file_name}.lock", f"download of {file_name}"):
        if _is_complete(archive, folder):  # another process has downloaded it meanwhile
            return False
        path = _retrieve(archive, downloads, file_name)
        extract(path, folder, archive)
        if not _is_complete(archive, folder):
            raise UserError(
                f"{archive.url} does not hold the expected images {dict(archive.images)}"
            )
        path.unlink()
    return True


def extract(path: Path, folder: Path, archive: Archive) -> None:
    """Unpack the images of ``archive.folders`` from a zip or tar file, each image whole.

    Raises:
        UserError: the file is damaged or no archive, or the disk is full.
    """
    try:
        with ExitStack() as stack:
            chosen = []
            for name, open_member in _members(path, stack).items():
                member = PurePosixPath(name)
                sub = archive.folders.get(str(member.parent))
                if sub and member.suffix.lower() in SUFFIXES:
                    last = sub in archive.images  # they show that the archive was unpacked
                    chosen.append((last, folder / sub / member.name, open_member))
            for _, target, open_member in sorted(chosen, key=lambda item: item[0]):
                with open_member() as source:
                    write_atomic(target, partial(shutil.copyfileobj, source))
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"cannot unpack {path}: {error}; delete it and try again") from error


@dataclass
class ResumableDownloader:
    """A downloader for pooch that continues where an earlier try stopped (HTTP ranges).

    Attributes:
        part: file that keeps what has arrived until all has.
        retries: tries in a row without a byte of progress before giving up.
        pause: seconds to wait before the first retry, doubled with each.
        timeout: seconds to wait for an answer.
    """

    part: Path
    retries: int = 5
    pause: float = 1.0
    timeout: float = 60.0

    def __call__(self, url: str, output_file: Any, _: Any) -> None:
        """Fetch ``url`` into ``output_file``.

        Raises:
            UserError: no progress after all retries; what has arrived is kept.
        """
        failures = 0
        with progress_bar("MB") as progress:
            task = progress.add_task(PurePosixPath(url).name, total=None)
            while True:
                before = self._have()
                try:
                    self._fetch(url, progress, task)
                    break
                except (HTTPError, ConnectionError) as error:
                    permanent = isinstance(error, HTTPError) and 400 <= error.code < 500
                    failures = 0 if self._have() > before else failures + 1
                    if permanent or failures > self.retries:
                        raise UserError(
                            f"cannot download {url}: {error}; run the same command again to "
                            f"continue from {self._have() / _MB:.1f} MB"
                        ) from error
                    time.sleep(self.pause * 2 ** max(failures - 1, 0))
        self.part.replace(output_file)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _fetch(self, url: str, progress: Progress, task: TaskID) -> None:
        """Append what is missing to the part.

        Raises:
            HTTPError: the server refused.
            ConnectionError: the network failed, or the answer does not fit the part.
        """
        have = self._have()
        request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            with _network_errors():
                response = urlopen(request, timeout=self.timeout)
        except HTTPError as error:
            if error.code != 416 or not have:
                raise
            # Nothing comes after the part: it is whole, or not of this file.
            if (error.headers.get("Content-Range") or "").rpartition("/")[2] == str(have):
                return
            self.part.unlink()
            raise ConnectionError("the part kept from before does not fit") from error
        with response:
            resumed = response.status == 206
            content_range = response.headers.get("Content-Range", "")
            if resumed and not content_range.startswith(f"bytes {have}-"):
                raise ConnectionError("the server answered with another range")
            start = have if resumed else 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            progress.update(task, completed=start / _MB, total=total and total / _MB)
            with self.part.open("ab" if resumed else "wb") as file:
                while chunk := _read(response):
                    file.write(chunk)
                    progress.advance(task, len(chunk) / _MB)
        if total is not None and self._have() < total:
            raise ConnectionError("the connection was cut")


@contextmanager
def _network_errors() -> Iterator[None]:
    """Raise ConnectionError for any failure of the network, unlike failures of our own files."""
    try:
        yield
    except HTTPError:
        raise
    except URLError as error:
        raise ConnectionError(str(error.reason)) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConnectionError(reason) from error


def _read(response: IO[bytes]) -> bytes:
    with _network_errors():
        return response.read(_CHUNK)


def _retrieve(archive: Archive, downloads: Path, file_name: str) -> Path:
    """The archive's file, its hash checked: the one kept from before, or downloaded."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    try:
        path = pooch.retrieve(
            archive.url,
            known_hash=archive.known_hash,
            fname=file_name,
            path=downloads,
            downloader=ResumableDownloader(downloads / f"{file_name}.part"),
        )
    except ValueError as error:  # how pooch reports a wrong hash
        raise UserError(
            f"{archive.url} does not have the known hash {archive.known_hash}: "
            "it was damaged on the way or replaced; it has been deleted, try again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write to {downloads}: {error.strerror or error}") from error
    return Path(path)


def _members(path: Path, stack: ExitStack) -> dict[str, Callable[[], IO[bytes]]]:
    """Name and opener of the members of a zip or tar file, which ``stack`` keeps open."""
    if zipfile.is_zipfile(path):
        archive = stack.enter_context(zipfile.ZipFile(path))
        return {name: partial(archive.open, name) for name in archive.namelist()}
    tar = stack.enter_context(tarfile.TarFile.open(path))
    return {info.name: partial(_open_tar_member, tar, info) for info in tar if info.isreg()}


def _open_tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    assert file is not None, "a regular file can be opened"
    return file


def _is_complete(archive: Archive, folder: Path) -> bool:
    return all(len(find_images(folder / sub)) >= n for sub, n in archive.images.items())
