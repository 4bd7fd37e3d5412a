"""Download DIV2K and the benchmark sets: resumable, with known hashes, safely unpacked."""

from __future__ import annotations

import http.client
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pooch
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..base.errors import UserError
from ..base.files import write_atomic
from ..base.locks import lock
from .files import SUFFIXES, find_images

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A published archive of images.

    Attributes:
        known_hash: ``md5:…`` or ``sha256:…``.
        folders: folder in the archive: folder under the data folder; the rest is left out.
        images: number of images that each of those folders must hold in the end.
        max_bytes: the most that may be unpacked.
        terms: terms of use, shown before the download.
    """

    url: str
    known_hash: str
    folders: Mapping[str, str]
    images: Mapping[str, int]
    max_bytes: int
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
        max_bytes=8 << 30,
        terms="DIV2K (Agustsson and Timofte, CVPRW 2017), 3.5 GB: for academic research only",
    ),
    "benchmark": Archive(
        url="https://cv.snu.ac.kr/research/EDSR/benchmark.tar",
        known_hash="md5:4ace41d33c2384b97e6b320cd0afd6ba",
        folders={f"benchmark/{folder}": folder for folder in _BENCHMARK_FOLDERS},
        images={"Set5/HR": 5, "Set14/HR": 14, "B100/HR": 100, "Urban100/HR": 100},
        max_bytes=2 << 30,
        terms="Set5, Set14, B100, Urban100 as packed for EDSR (Lim et al., CVPRW 2017), 250 MB: "
        "for research",
    ),
}


def download(archive: Archive, folder: Path) -> bool:
    """Download an archive and unpack it under ``folder``; False if its images are there.

    Raises:
        UserError: the download fails (run again to go on), the hash is wrong, the archive is
            unsafe or incomplete, or there is no space.
    """
    if _is_complete(archive, folder):
        return False
    downloads = folder / ".downloads"
    file_name = PurePosixPath(archive.url).name
    with lock(downloads / f"{file_name}.lock", f"download of {file_name}"):
        if _is_complete(archive, folder):  # another process was at it
            return False
        _retrieve(archive, folder, downloads, file_name)
    return True


def _retrieve(archive: Archive, folder: Path, downloads: Path, file_name: str) -> None:
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
    extract(Path(path), folder, archive)
    if not _is_complete(archive, folder):
        raise UserError(f"{archive.url} does not hold the expected images {dict(archive.images)}")
    Path(path).unlink()


@dataclass
class ResumableDownloader:
    """A downloader for pooch that goes on where an earlier try stopped (HTTP ranges).

    Attributes:
        part: file that keeps what has arrived until all has.
        retries: tries in a row without a byte of progress before giving up.
        pause: seconds to wait before the first retry, doubled with each.
    """

    part: Path
    retries: int = 5
    pause: float = 1.0
    timeout: float = 60.0

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        """Fetch ``url`` into ``output_file``.

        Raises:
            UserError: no progress after all retries; what has arrived is kept.
        """
        failures = 0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(PurePosixPath(url).name, total=None)
            while True:
                before = self._have()
                try:
                    self._fetch(url, progress, task)
                    break
                except (URLError, http.client.HTTPException, ConnectionError, TimeoutError) as e:
                    permanent = isinstance(e, HTTPError) and 400 <= e.code < 500
                    failures = 0 if self._have() > before else failures + 1
                    if permanent or failures > self.retries:
                        reason = e.reason if type(e) is URLError else e
                        raise UserError(
                            f"cannot download {url}: {reason}; run the same command again to go on "
                            f"from {self._have() / 1e6:.1f} MB"
                        ) from e
                    time.sleep(self.pause * 2 ** max(failures - 1, 0))
        self.part.replace(output_file)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _fetch(self, url: str, progress: Progress, task: TaskID) -> None:
        have = self._have()
        request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        try:
            response = urlopen(request, timeout=self.timeout)
        except HTTPError as error:
            if error.code == 416 and have:  # the part is whole, or not of this file
                total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
                if total == str(have):
                    return
                self.part.unlink()
                raise ConnectionError("the part kept from before does not fit") from error
            raise
        except URLError:
            raise
        except OSError as error:
            raise _connection_error(error) from error
        with response:
            resumed = response.status == 206
            if resumed and not response.headers.get("Content-Range", "").startswith(
                f"bytes {have}-"
            ):
                raise ConnectionError("the server answered with another range")
            start = have if resumed else 0
            length = response.headers.get("Content-Length")
            total_size = start + int(length) if length else None
            progress.update(task, completed=start, total=total_size)
            with self.part.open("ab" if resumed else "wb") as file:
                while chunk := _read(response):
                    file.write(chunk)
                    progress.update(task, advance=len(chunk))
        if total_size is not None and self._have() < total_size:
            raise ConnectionError("the connection was cut")


def _read(response: IO[bytes]) -> bytes:
    try:
        return response.read(_CHUNK)
    except OSError as error:
        raise _connection_error(error) from error


def _connection_error(error: OSError) -> ConnectionError:
    """Of the network, whatever its kind: those of our own files are other errors."""
    return ConnectionError(error.strerror or str(error) or type(error).__name__)


def extract(path: Path, folder: Path, archive: Archive) -> None:
    """Unpack the images of ``archive.folders`` from a zip or tar file, each file whole.

    Raises:
        UserError: no such archive; or one with absolute paths, ``..``, links or devices, or
            larger than ``archive.max_bytes`` (nothing is written then).
    """
    try:
        with ExitStack() as stack:
            members = list(_members(path, stack))
            _check_members(path.name, members, archive.max_bytes)
            chosen = []
            for member in members:
                pure = PurePosixPath(member.name)
                sub = archive.folders.get(str(pure.parent))
                if member.kind == "file" and sub and pure.suffix.lower() in SUFFIXES:
                    chosen.append((member, sub, pure.name))
            # Those that tell whether an archive was unpacked come last.
            for member, sub, name in sorted(chosen, key=lambda file: file[1] in archive.images):
                target = folder / sub / name
                if not (target.exists() and target.stat().st_size == member.size):
                    write_atomic(target, member.copy_to)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"cannot unpack {path}: {error}; delete it and try again") from error


@dataclass(frozen=True)
class _Member:
    name: str
    kind: Literal["file", "folder", "other"]
    size: int
    open: Callable[[], IO[bytes] | None]

    def copy_to(self, file: IO[bytes]) -> None:
        """Copy the content, never more than the size that the archive states for it."""
        left = self.size
        source = self.open()
        assert source is not None, "only files are copied"
        with source:
            while left and (chunk := source.read(min(_CHUNK, left))):
                file.write(chunk)
                left -= len(chunk)


def _members(path: Path, stack: ExitStack) -> Iterator[_Member]:
    if zipfile.is_zipfile(path):
        zip_file = stack.enter_context(zipfile.ZipFile(path))
        for info in zip_file.infolist():
            plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            yield _Member(
                info.filename,
                "other" if not plain else "folder" if info.is_dir() else "file",
                info.file_size,
                partial(zip_file.open, info),
            )
    else:
        tar_file = stack.enter_context(tarfile.TarFile.open(path))
        for tar_info in tar_file:
            yield _Member(
                tar_info.name,
                "file" if tar_info.isreg() else "folder" if tar_info.isdir() else "other",
                tar_info.size,
                partial(tar_file.extractfile, tar_info),
            )


def _check_members(archive_name: str, members: list[_Member], max_bytes: int) -> None:
    for member in members:
        pure = PurePosixPath(member.name.replace("\\", "/"))
        if member.kind == "other" or pure.is_absolute() or ".." in pure.parts or ":" in member.name:
            raise UserError(
                f"{archive_name} is unsafe (it holds {member.name!r}): nothing was unpacked"
            )
    if sum(member.size for member in members) > max_bytes:
        raise UserError(
            f"{archive_name} unpacks to more than {max_bytes / 1e9:.1f} GB: nothing was unpacked"
        )


def _is_complete(archive: Archive, folder: Path) -> bool:
    return all(len(find_images(folder / sub)) >= n for sub, n in archive.images.items())
