"""Colorizes many pictures: while a batch is predicted, the next one is read and the one before it is written."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline import files, image
from pipeline.image import Picture
from trainer.ahead import map_ahead
from trainer.colorizer import BATCH, PIXELS, Colorizer, Prepared
from trainer.tasks import SOFTWARE, Outcome, Task, is_gray

_OPEN = 2 * BATCH  # files that are read ahead
_GRAY = "the model knew no color"
_HEAD_BYTES = 1024
COMPRESSION = 1  # of PNG, from 0 to 9: 6 takes five times as long, and makes photographs no smaller


class _Opened(NamedTuple):
    task: Task
    data: bytes
    pixels: int


class _Decoded(NamedTuple):
    task: Task
    picture: Picture
    prepared: Prepared


def colorize(colorizer: Colorizer, tasks: Sequence[Task], done: Callable[[], object]) -> Outcome:
    """Colorizes pictures. Each becomes a PNG of its own size, with its transparency.

    Args:
        colorizer: a trained model.
        tasks: what to read, and what to write.
        done: called for each picture that is written, or cannot be; by any thread.
    """
    flow = _Flow(colorizer, done)
    try:
        flow.run(tasks)
    finally:
        flow.close()
    return flow.outcome


class _Flow:
    def __init__(self, colorizer: Colorizer, done: Callable[[], object]):
        self.outcome = Outcome()
        self._colorizer = colorizer
        self._done = done
        self._pool = ThreadPoolExecutor(os.cpu_count())

    def run(self, tasks: Sequence[Task]) -> None:
        decoding: list[Future[_Decoded | None]] = []
        writing: list[Future[None]] = []
        for batch in self._batches(tasks):
            upcoming = [self._pool.submit(self._decode, each) for each in batch]
            writing = self._predict(decoding, writing)
            decoding = upcoming
        for each in self._predict(decoding, writing):
            each.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _batches(self, tasks: Sequence[Task]) -> Iterator[list[_Opened]]:
        """Opened files in their order, as many together as go into a batch."""
        batch: list[_Opened] = []
        for opened in map_ahead(self._pool, self._open, tasks, _OPEN):
            if opened is None:
                continue
            if len(batch) == BATCH or (batch and sum(each.pixels for each in batch) + opened.pixels > PIXELS):
                yield batch
                batch = []
            batch.append(opened)
        if batch:
            yield batch

    def _open(self, task: Task) -> _Opened | None:
        with self._naming(task.path):
            data = files.read(task.path)
            return _Opened(task, data, image.pixels(data))
        return None

    def _decode(self, opened: _Opened) -> _Decoded | None:
        with self._naming(opened.task.path):
            picture = image.decode_picture(opened.data)
            return _Decoded(opened.task, picture, self._colorizer.prepare(picture.on_white()))
        return None

    def _predict(self, decoding: list[Future[_Decoded | None]], writing: list[Future[None]]) -> list[Future[None]]:
        """Predicts a batch and begins to write it, once the one before it is written."""
        batch = [decoded for each in decoding if (decoded := each.result()) is not None]
        predicted = self._colorizer.predict([each.prepared for each in batch]) if batch else []
        for each in writing:
            each.result()
        return [self._pool.submit(self._write, each, ab) for each, ab in zip(batch, predicted, strict=True)]

    def _write(self, decoded: _Decoded, ab: np.ndarray) -> None:
        task, picture = decoded.task, decoded.picture
        with self._naming(task.path):
            rgb = self._colorizer.join(picture.rgb, ab)
            files.write(task.target, encode(rgb, picture.alpha, is_gray(ab)))
            if is_gray(ab):
                self.outcome.gray.add(task.path)
            self._done()

    @contextlib.contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        """Keeps what is wrong with a picture from the others."""
        with self.outcome.naming(path):
            yield
            return
        self._done()


def encode(rgb: np.ndarray, alpha: np.ndarray | None, is_gray: bool, origin: str = "") -> bytes:
    """The PNG file of a result, which says that it is one.

    Args:
        rgb: uint8 [height, width, 3].
        alpha: uint8 [height, width]; None where nothing shows through.
        is_gray: whether the model knew no color; the file says so, too.
        origin: what it was made of, for `read_result`.
    """
    buffer, texts = io.BytesIO(), PngInfo()
    texts.add_text("Software", SOFTWARE)
    if is_gray:
        texts.add_text("Comment", _GRAY)
    if origin:
        texts.add_text("Source", origin)
    Image.fromarray(rgb if alpha is None else np.dstack([rgb, alpha])).save(
        buffer, format="PNG", pnginfo=texts, compress_level=COMPRESSION
    )
    return buffer.getvalue()


class Result(NamedTuple):
    """What a file says that `encode` made: whether the model knew no color, and what it was made of, or ""."""

    is_gray: bool
    origin: str


def read_result(file: BinaryIO) -> Result | None:
    """Reads the beginning of a file, 1 kB at most; None where it is none that `encode` made.

    Raises:
        OSError: it cannot be read.
    """
    head = io.BytesIO(file.read(_HEAD_BYTES))
    try:
        with Image.open(head, formats=("PNG",)) as picture:
            texts = picture.info
    except (OSError, SyntaxError, ValueError):  # whatever it is
        return None
    if texts.get("Software") != SOFTWARE:
        return None
    return Result(texts.get("Comment") == _GRAY, texts.get("Source", ""))


def is_result(path: str) -> bool:
    """Whether a file, which exists, was written by `colorize`.

    Raises:
        OSError: it cannot be read.
    """
    with files.open_binary(path) as file:
        return read_result(file) is not None
