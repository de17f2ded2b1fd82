"""Where the files of a public data set lie: in a folder, in an archive as downloaded, or in the user's cache."""

import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from hashlib import blake2b
from pathlib import Path, PurePosixPath

import platformdirs

from fedrec.data.layouts.layout import Layout
from fedrec.errors import UserError
from fedrec.files import DAMAGED

ENDS = ("", ".gz", ".bz2", ".xz", ".zst")  # of a file that may be packed
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz")
DEEP = ("", "*/", "*/*/")  # an archive's own folder, and one for each part of the data


def find(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a pattern in a folder, packed or not, by name; else those up to two folders below it."""
    for deep in DEEP:
        found: dict[Path, Path] = {}
        for end in ENDS:
            for path in folder.glob(deep + pattern + end):
                found.setdefault(Path(str(path).removesuffix(end)), path)
        if found:
            return [found[name] for name in sorted(found)]
    return []


def packed(path: Path) -> bool:
    """Return whether a path is that of an archive."""
    return path.name.lower().endswith(ARCHIVES)


def missing(layout: Layout) -> str:
    """Return what to fetch, and where to say that it is."""
    return f"fetch {layout.fetch} from {layout.page}, and name its folder with --data-dir"


def cached(name: str, layout: Layout, files: Sequence[str]) -> Path:
    """Return the folder of a data set in the user's cache, filled by one download if its files are not there.

    Raises UserError, which says what to fetch, where the download fails, or there is none.
    """
    folder = _cache() / name
    if all(find(folder, file) for file in files):
        return folder
    if not layout.url:
        raise UserError(f"data-dir: {name} is not downloaded for you, found no folder; {missing(layout)}")
    import pooch  # type: ignore[import-not-found, import-untyped, unused-ignore]

    help_ = f"fetch {layout.url} elsewhere and unpack it to {folder}, or name its directory with --data-dir"
    pooch.get_logger().setLevel("WARNING")
    try:
        with _filled(folder) as new:
            known = f"md5:{layout.md5}" if layout.md5 else None
            archive = Path(pooch.retrieve(layout.url, known, fname=f"{name}.zip", path=new))
            _extract(archive, files, new)
            archive.unlink()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: must be in the cache or be downloaded, found {reason}; {help_}") from None
    return folder


def unpacked(archive: Path, files: Sequence[str]) -> Path:
    """Return a folder in the user's cache with the files of an archive that match patterns; raises UserError."""
    try:
        kind = archive.stat()
        key = blake2b(f"{archive.resolve()} {kind.st_size} {kind.st_mtime_ns}".encode(), digest_size=8).hexdigest()
        folder = _cache() / "archives" / key
        if not folder.is_dir():
            with _filled(folder) as new:
                _extract(archive, files, new)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data-dir: {archive} must be a readable archive, found {reason}") from None
    return folder


def _cache() -> Path:
    return Path(platformdirs.user_cache_dir("fedrec"))


@contextmanager
def _filled(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` at the end; after an exception nothing is left of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        yield new
        # What stands there lacks a file, or another process has just finished: either way ours is complete.
        shutil.rmtree(folder, ignore_errors=True)
        new.replace(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _extract(archive: Path, files: Sequence[str], folder: Path) -> None:
    """Write the files of an archive that match a pattern into a folder, and no other; raises OSError."""
    patterns = [file + end for file in files for end in ENDS]

    def place(member: str) -> Path | None:
        """Return where a member goes, with the folder that it is in: train and test may have files of one name."""
        *above, name = PurePosixPath(member).parts or ("",)
        if not any(fnmatch(name, pattern) for pattern in patterns):
            return None
        inside = folder.joinpath(*(part for part in above[-1:] if part not in ("..", "/")))
        inside.mkdir(exist_ok=True)
        return inside / name

    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                for one in zipped.infolist():
                    if not one.is_dir() and (target := place(one.filename)):
                        with zipped.open(one) as source, target.open("wb") as file:
                            shutil.copyfileobj(source, file)
            return
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isfile() and (target := place(member.name)) and (inside := tar.extractfile(member)):
                    with inside, target.open("wb") as file:
                        shutil.copyfileobj(inside, file)
    except DAMAGED as error:
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from None
