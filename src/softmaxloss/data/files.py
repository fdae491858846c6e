"""What all files that come in or go out share: one kind of error, and output that is whole or absent."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

__all__ = [
    "MODEL_SUFFIX",
    "DataError",
    "check_input",
    "check_output",
    "known_suffix",
    "listed",
    "one_line",
    "replacing",
]


MODEL_SUFFIX = ".skops"

MOST_NAMES_LISTED = 20


class DataError(ValueError):
    """A problem with a file or with the data in it, told in one line that names the file.

    Examples
    --------
    >>> from softmaxloss.data.files import DataError
    >>> raise DataError("iris.csv: is empty")
    Traceback (most recent call last):
    softmaxloss.data.files.DataError: iris.csv: is empty
    """


def one_line(text: object) -> str:
    r"""Join the lines of a message, so that it stays one line whatever another library put into it.

    Examples
    --------
    >>> from softmaxloss.data.files import one_line
    >>> one_line(ValueError("first\n  second"))
    'first second'
    """
    return " ".join(str(text).split())


def listed(names: Sequence[object]) -> str:
    """List names in quotes, no more than fit a message.

    Examples
    --------
    >>> from softmaxloss.data.files import listed
    >>> listed(["sepal", "petal"])
    "'sepal', 'petal'"
    """
    shown = ", ".join(repr(str(name)) for name in names[:MOST_NAMES_LISTED])
    return shown if len(names) <= MOST_NAMES_LISTED else f"{shown}, ... ({len(names)} in all)"


def known_suffix(path: Path, known: Iterable[str]) -> str:
    """Give a path's suffix in lower case if it is one of those known.

    Raises
    ------
    DataError
        It is not; the message lists the known ones.

    Examples
    --------
    >>> from pathlib import Path
    >>> from softmaxloss.data.files import known_suffix
    >>> known_suffix(Path("Iris.CSV"), [".csv", ".parquet"])
    '.csv'
    """
    suffix = path.suffix.lower()
    names = list(known)
    if suffix not in names:
        given = f"the suffix {path.suffix!r} is not known" if suffix else "the name has no suffix"
        raise DataError(f"{path}: {given}; the kind of file is told by its suffix, one of {', '.join(names)}")
    return suffix


def check_input(path: Path) -> None:
    """Check that a path is a file that can be read and holds something.

    Raises
    ------
    DataError
        It is missing, a directory, empty, or may not be read.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise DataError(f"{path}: is a directory, a file is expected")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({_reason(error)})") from None
    if not status.st_size and stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: the file is empty")


def check_output(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Check that a file can be written at a path, before the work whose result it is to hold.

    Parameters
    ----------
    path : Path
        Where a file is to be written; one that is there will be replaced. Of a link, what it points to.
    inputs : iterable of Path
        Files that the output must not replace.

    Raises
    ------
    DataError
        The folder is missing or takes no file, or the path is a directory, one of the inputs or a link in a loop.
    """
    with _naming(path):
        if path.is_dir():
            raise DataError(f"{path}: is a directory, the name of a file to write is expected")
        if any(other.exists() and path.exists() and path.samefile(other) for other in inputs):
            raise DataError(f"{path}: is the input itself; write to another file")
        # Permissions, quotas and read-only mounts are known for certain only by making a file.
        descriptor, name = _temporary(_target(path))
        os.close(descriptor)
        Path(name).unlink()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file beside a path to write to; it takes the path's place when the block ends well.

    Nobody sees a half-written file: after an error, or Ctrl-C, the temporary file is gone and what stood at
    the path is there as before.

    Raises
    ------
    DataError
        The file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from softmaxloss.data.files import replacing
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "greeting.txt")
    ...     with replacing(path) as temporary:
    ...         _ = temporary.write_text("hello")
    ...     path.read_text()
    'hello'
    """
    with _naming(path):
        target = _target(path)
        descriptor, name = _temporary(target)
        temporary = Path(name)
        try:
            os.fchmod(descriptor, _mode(target))
            os.close(descriptor)
            yield temporary
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _target(path: Path) -> Path:
    """Give the path of the file itself: a link stays a link, and what it points to is replaced."""
    if not path.is_symlink():
        return path
    with contextlib.suppress(FileNotFoundError):
        path.stat()  # raises OSError for links in a loop, of which `resolve` says something else in each Python
    return path.resolve()


def _temporary(path: Path) -> tuple[int, str]:
    return tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:40]}-", suffix=path.suffix)


def _mode(path: Path) -> int:
    """Give the permissions of the file replaced, or of any new file: mkstemp's are for the owner only."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Links in a loop point to no folder that could be the reason.
        folder = path.parent if error.errno == errno.ELOOP else _target(path).parent
        reason = _reason(error) if folder.is_dir() else f"there is no folder {folder}"
        raise DataError(f"{path}: cannot be written ({reason})") from None


def _reason(error: Exception) -> str:
    return one_line(getattr(error, "strerror", None) or error)
