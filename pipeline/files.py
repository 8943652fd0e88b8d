"""Files, local or remote, where Beam is not at hand; remote ones through TensorFlow, which local ones do not need."""

import contextlib
import errno
import functools
import io
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NoReturn

from pipeline import gs, loading
from pipeline.errors import UserError, one_line

LOCAL_BUFFER_BYTES = 8 << 10  # more is read past it, straight to where it belongs
_ASKED_BYTES = 512 << 10  # what TensorFlow asks a file system for, and keeps of it
_MEANINGS = {
    401: "Cloud Storage wants credentials (401); run 'gcloud auth application-default login'",
    403: "whoever is logged in has no access to it (403); ask its owner for roles/storage.objectAdmin",
}
WILDCARD = re.compile(r"[*?\[]")
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp/?$")  # at the end of `temporary_name`
REMOTE_BUFFER_BYTES = 2 * _ASKED_BYTES + (loading.GCS_BLOCK_MIB << 20)  # of an open file, in all


def open_binary(path: str) -> BinaryIO:
    """Opens a local or remote file for reading; a remote one through TensorFlow.

    Raises:
        OSError: it cannot be opened, or is a pipe, which might never end.
    """
    if "://" not in path:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError(errno.EINVAL, "not a file")
        return open(path, "rb", buffering=LOCAL_BUFFER_BYTES)
    return io.BufferedReader(_RemoteFile(path), _ASKED_BYTES)


def read(path: str) -> bytes:
    """The whole of a local or remote file.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    with open_binary(path) as file:
        return file.read()


class _RemoteFile(io.RawIOBase):
    """A remote file as one of Python's."""

    def __init__(self, path: str):
        tf = loading.tensorflow()
        self._path = path
        self._file = tf.io.gfile.GFile(path, "rb")
        with _os_errors(path):
            self._file.read(0)  # opens it

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _os_errors(self._path):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _os_errors(self._path):
            self._file.seek(offset, whence)
            return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def names(directory: str) -> list[str]:
    """The names of what stands in a directory.

    Raises:
        OSError: it cannot be listed.
    """
    if "://" not in directory:
        return os.listdir(directory)
    tf = loading.tensorflow()
    with _os_errors(directory):
        tf.io.gfile.stat(directory)  # what lists takes a store that does not answer for one without the directory
        return tf.io.gfile.listdir(directory)


def size(path: str) -> int:
    """The bytes of a file.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be looked at.
    """
    if "://" not in path:
        return os.path.getsize(path)
    tf = loading.tensorflow()
    with _os_errors(path):
        return tf.io.gfile.stat(path).length


def exists(path: str) -> bool:
    """Whether anything stands at a path.

    Raises:
        OSError: the store does not answer.
    """
    if "://" not in path:
        return os.path.lexists(path)
    tf = loading.tensorflow()
    with _os_errors(path):
        return tf.io.gfile.exists(path)


def find(path: str) -> list[tuple[str, str]]:
    """The files that a path stands for: itself, those below a folder, or those that match a pattern.

    In a pattern `*`, `?` and `[...]` stay within a folder, `**` does not. What is hidden is left out; links to files
    are followed, those to folders are not.

    Args:
        path: local or remote. One that does not exist stands for itself, unless it is a pattern.

    Returns:
        The path of each file, and its name below the folder, or below the last folder before a wildcard; sorted.

    Raises:
        UserError: a folder that cannot be listed, or one or a pattern that holds no file.
    """
    try:
        if _is_folder(path):
            folder, pattern = path, re.compile("")
        elif not exists(path) and (wildcard := WILDCARD.search(path)):
            folder, pattern = os.path.dirname(path[: wildcard.start()]), _compile(path)
        else:
            return [(path, os.path.basename(path))]
        found = sorted(_below(folder))
    except (OSError, re.error) as error:
        raise UserError(f"{path} cannot be listed: {one_line(error)}; look at its name") from error
    found = [each for each in found if pattern.match(each[0])]
    if not found:
        raise UserError(f"{path} holds no file; look at its name")
    return found


def find_all(named: Iterable[str]) -> list[str]:
    """The paths of the files that some paths stand for, each once.

    Raises:
        UserError: as `find`.
    """
    return list(dict.fromkeys(path for each in named for path, _ in find(each)))


def is_empty(folder: str) -> bool:
    """Whether no file stands below a folder.

    Raises:
        OSError: it cannot be listed.
    """
    return next(_below(folder), None) is None


def _is_folder(path: str) -> bool:
    if "://" not in path:
        return os.path.isdir(path)
    tf = loading.tensorflow()
    return tf.io.gfile.isdir(path)


def _compile(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*|\?|\[[^]]+\])", pattern)  # what is between wildcards, and wildcards, in turn
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = map(_translate, parts[1::2])
    return re.compile("".join(parts) + r"\Z", re.DOTALL)


def _translate(wildcard: str) -> str:
    if wildcard.startswith("["):
        return "[" + wildcard[1:].replace("\\", r"\\").replace("!", "^", wildcard[1] == "!")
    return {"**": ".*", "*": "[^/]*", "?": "[^/]"}[wildcard]


def _below(folder: str) -> Iterator[tuple[str, str]]:
    """The path of each file below a folder, and its name there, in which there are no empty parts."""

    def fail(error: Exception) -> NoReturn:
        raise error

    walk = os.walk
    if "://" in folder:
        tf = loading.tensorflow()
        walk = tf.io.gfile.walk
    with _os_errors(folder):
        for base, folders, names in walk(folder or ".", onerror=fail):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (os.path.join(base, name) for name in names if not name.startswith(".")):
                inner = os.path.relpath(path, folder or ".")
                yield path if folder else inner, inner


def make_folder(path: str) -> None:
    """Makes a folder and those above it, where there are none.

    Raises:
        UserError: it cannot be made.
    """
    with _creating(path):
        if "://" not in path:
            os.makedirs(path or ".", exist_ok=True)
            return
        if gs.is_path(path):  # where folders are no more than how names begin
            return
        tf = loading.tensorflow()
        with _os_errors(path):
            tf.io.gfile.makedirs(path)


@contextlib.contextmanager
def _creating(folder: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"folder {folder} cannot be created: {one_line(error)}; name another") from error


def write(path: str, content: bytes) -> None:
    """Writes a file; whoever finds its name finds the whole of it, and a failure leaves nothing behind.

    Raises:
        UserError: it cannot be written.
    """
    temporary = temporary_name(path)
    create, rename, remove = _operations(path)
    try:
        with _writing(path), _os_errors(path):
            with create(temporary, "wb") as file:
                file.write(content)
            rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError), _os_errors(path):
            remove(temporary)
        raise


@contextlib.contextmanager
def aside(path: str) -> Iterator[str]:
    """A local path for what other programs write to: at the end of the block it is renamed, or goes where it belongs.

    Whoever finds the name finds the whole file, and a block that fails leaves nothing behind.

    Raises:
        UserError: it cannot be brought to its place.
    """
    if "://" in path:
        with tempfile.TemporaryDirectory() as folder:
            temporary = os.path.join(folder, "file")
            yield temporary
            upload(temporary, path)
        return
    temporary = temporary_name(path)
    try:
        yield temporary
        with _writing(path):
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def upload(local: str, path: str) -> None:
    """Copies a local file to a remote path; whoever finds that finds the whole file.

    Raises:
        UserError: it cannot be written.
    """
    tf = loading.tensorflow()
    temporary = temporary_name(path)
    try:
        with _writing(path), _os_errors(path):
            tf.io.gfile.copy(local, temporary)
            tf.io.gfile.rename(temporary, path, overwrite=True)
    except BaseException:
        with contextlib.suppress(tf.errors.OpError):
            tf.io.gfile.remove(temporary)
        raise


def temporary_name(path: str) -> str:
    """Another name each time, for what is to have that of a path once it is whole."""
    return f"{path}.{uuid.uuid4().hex}.tmp"


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {one_line(error)}; make room there, or name another") from error


@contextlib.contextmanager
def folder_aside(path: str, first: str = "", last: str = "") -> Iterator[str]:
    """A local folder for what is to become a new one, or to take the place of an empty one, at the end of the block.

    Whoever finds its name finds all of it; of a remote one, whose files come one by one, who finds the last of them. A
    block that fails leaves nothing behind, unless the store fails as well.

    Args:
        path: of the folder, local or remote.
        first: the name below it of the file that comes first, and goes last where a block fails.
        last: that of the file that comes last.

    Raises:
        UserError: it cannot be made or renamed, or somebody has deleted what was written to it.
    """
    if "://" in path:
        with tempfile.TemporaryDirectory() as temporary:
            yield temporary
            try:
                _upload_folder(temporary, path, first, last)
            except BaseException:
                with contextlib.suppress(UserError):
                    remove_folder(path, first=last, last=first)
                raise
            _check_uploaded(temporary, path, last)
        return
    path = os.path.realpath(path)
    temporary = temporary_name(path)
    with _creating(path):
        os.makedirs(temporary)
    try:
        yield temporary
        with _creating(path):
            os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _upload_folder(local: str, path: str, first: str, last: str) -> None:
    for source, name in sorted(_below(local), key=lambda each: (each[1] == last, each[1] != first, each)):
        target = os.path.join(path, name)
        make_folder(os.path.dirname(target))
        upload(source, target)


def _check_uploaded(local: str, path: str, last: str) -> None:
    """Takes back the name of a folder that somebody took for a left-over meanwhile, and leaves the rest to them."""
    if lost := {name for _, name in _below(local)} - {name for _, name in _below(path)}:
        if last:
            remove(os.path.join(path, last))
        raise UserError(f"{path}: another program has deleted {min(lost)} while others were written; start again")


@contextlib.contextmanager
def local_folder(path: str) -> Iterator[str]:
    """The files of a folder in a local one: itself, or copies of remote ones, for the time of the block.

    Raises:
        OSError: it cannot be read.
    """
    with contextlib.nullcontext(path) if "://" not in path else _copies(path, names(path)) as folder:
        yield folder


@contextlib.contextmanager
def local_file(path: str) -> Iterator[str]:
    """A file where other libraries can read it: itself, or a copy of a remote one, for the time of the block.

    Raises:
        OSError: it cannot be read.
    """
    folder, name = os.path.split(path)
    with contextlib.nullcontext(folder) if "://" not in path else _copies(folder, [name]) as near:
        yield os.path.join(near, name)


@contextlib.contextmanager
def _copies(folder: str, chosen: Iterable[str]) -> Iterator[str]:
    """A local folder with copies of some files of a remote one."""
    with tempfile.TemporaryDirectory() as copies:
        for name in chosen:
            with open_binary(os.path.join(folder, name)) as source, open(os.path.join(copies, name), "wb") as copy:
                shutil.copyfileobj(source, copy, _ASKED_BYTES)
        yield copies


def remove_folder(path: str, first: str = "", last: str = "") -> None:
    """Deletes a folder and what is in it; one that is not there is fine.

    Args:
        path: of the folder, local or remote.
        first: the name below it of the file that goes first, where there is one.
        last: that of the file that goes last, of a remote folder.

    Raises:
        UserError: it cannot be deleted.
    """
    if first:
        remove(os.path.join(path, first))
    try:
        if "://" not in path:
            shutil.rmtree(path)
            return
        found = sorted(_below(path), key=lambda each: each[1] == last)
        for each, _ in found:  # TensorFlow takes a folder of which the store does not answer for none
            remove(each)
        tf = loading.tensorflow()
        with _os_errors(path):
            tf.io.gfile.rmtree(path)  # what stands for an empty folder, if anything does
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} cannot be deleted: {one_line(error)}; start again once it can") from error


def remove(path: str) -> None:
    """Deletes a file; one that is not there is fine.

    Raises:
        UserError: it cannot be deleted.
    """
    try:
        with _os_errors(path):
            _operations(path)[2](path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} cannot be deleted: {one_line(error)}; start again once it can") from error


def _operations(path: str) -> tuple[Callable[..., Any], Callable[[str, str], None], Callable[[str], None]]:
    """What opens, renames over another, and removes a file of the kind of a path."""
    if "://" not in path:
        return open, os.replace, os.remove
    tf = loading.tensorflow()
    return tf.io.gfile.GFile, functools.partial(tf.io.gfile.rename, overwrite=True), tf.io.gfile.remove


@contextlib.contextmanager
def _os_errors(path: str) -> Iterator[None]:
    """Gives TensorFlow's errors of a remote file the class of everyone else's."""
    if "://" not in path:
        yield
        return
    tf = loading.tensorflow()
    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist") from error
    except tf.errors.OpError as error:
        raise OSError(said(error)) from error


def said(error: BaseException) -> str:
    """What TensorFlow's file systems say of a failure, in one line, or what it means."""
    text = one_line(error)
    for code, meaning in _MEANINGS.items():
        if f"HTTP response code {code}" in text:
            return meaning
    return text
