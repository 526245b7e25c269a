"""Debian packages without root: fetched through apt's own, verified way into a folder, unpacked, nothing installed."""

import hashlib
import logging
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from saelab import bars

log = logging.getLogger("saelab")


class FetchFailed(Exception):
    """The packages are out of reach here; the text says why in a few words."""


@dataclass(frozen=True)
class Package:
    """One package file, as apt's signed index describes it."""

    file: str  # name of the .deb
    size: int  # bytes
    sha256: str  # hex digest


def fetch(names: list[str], folder: Path) -> list[Path]:
    """The .deb files of these packages in `folder`, whole and verified; a broken-off download is taken up again.

    apt works with state and cache folders of its own below `folder`, so no root is needed, and no file of the system
    is written. Raises FetchFailed where apt is missing, doesn't know the packages or can't reach its archive.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FetchFailed(f"there is no {tool} on this machine")
    state, cache, empty = folder / "apt" / "state", folder / "apt" / "cache", folder / "apt" / "empty"
    for needed in (state / "lists" / "partial", cache / "archives" / "partial", empty):
        needed.mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "-q", "-o", f"Dir::State={state}", "-o", "Dir::State::status=/var/lib/dpkg/status"]
    apt += ["-o", f"Dir::Cache={cache}", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"]
    try:
        _run([*apt, "update"], empty)
    except FetchFailed as error:  # one broken source among several; whether the packages are known is seen below
        log.warning("apt-get update: %s", error)
    packages = _describe(_run([*apt, "download", "--print-uris", *names], empty), names)
    missing = [p for p in packages if not _whole(folder / p.file, p)]
    if missing:
        need = sum(p.size for p in packages) * 3  # the packages, their contents, and what is chosen of them
        free = shutil.disk_usage(folder).free
        if free < need:
            raise FetchFailed(f"{folder} has {free // 10**6} MB free, {need // 10**6} MB are needed")
        _download([*apt, "download", *names], folder, packages)
    for package in packages:
        if not _whole(folder / package.file, package):
            (folder / package.file).unlink(missing_ok=True)
            raise FetchFailed(f"{package.file} does not have the bytes that apt's index promises; try again")
    return [folder / p.file for p in packages]


def unpack(package: Path, folder: Path) -> None:
    """Unpack a .deb's files below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _run(["dpkg-deb", "-x", str(package.resolve()), str(folder.resolve())], folder)


def _describe(text: str, names: list[str]) -> list[Package]:
    found = re.findall(r"^'[^']*' (\S+) (\d+) SHA256:([0-9a-f]{64})", text, flags=re.M)
    if len(found) != len(names):
        raise FetchFailed(f"apt knows {len(found)} of the packages {', '.join(names)}")
    return [Package(file, int(size), digest) for file, size, digest in found]


def _whole(path: Path, package: Package) -> bool:
    if not path.is_file() or path.stat().st_size != package.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256


def _download(command: list[str], folder: Path, packages: list[Package]) -> None:
    total = sum(p.size for p in packages)
    # apt shows no progress unless it has a terminal; the growing files tell it as well.
    with (
        (folder / "apt" / "log").open("w+") as output,
        subprocess.Popen(command, cwd=folder, stdout=output, stderr=output) as process,
        bars.show(total=total, what="downloading pictures", unit="B", scaled=True, leave=True) as bar,
    ):
        while process.poll() is None:
            time.sleep(0.2)
            there = [folder / p.file for p in packages]
            bar.update(sum(f.stat().st_size for f in there if f.exists()) - bar.n)
        output.seek(0)
        if process.returncode:
            raise FetchFailed(_reason(output.read()))
        bar.update(total - bar.n)


def _run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise FetchFailed(_reason(done.stderr or done.stdout))
    return done.stdout


def _reason(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")] or lines or ["no reason given"]
    return errors[0][:200]
