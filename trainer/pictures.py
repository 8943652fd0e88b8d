"""Colorizes many pictures: while a batch is predicted, the next one is read and the one before it is written."""

import contextlib
import dataclasses
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline import color, files, image
from pipeline.errors import UserError, one_line
from pipeline.image import Picture
from pipeline.rejects import RejectedImage
from trainer.colorizer import Colorizer, Prepared

SOFTWARE = "koalarization"  # in each result, so that it is known when it is met again
BATCH = 8
# Of a batch, unless a picture alone has more: three batches are in memory at a time.
_PIXELS = 32 << 20
_OPEN = 2 * BATCH  # files that are read ahead
_COMPRESSION = 1  # of PNG, from 0 to 9: 6 takes five times as long, and makes photographs no smaller
_VISIBLE = 1.0  # a difference of a or b that a person might see

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Task(NamedTuple):
    """A picture's path and that of its result, local or remote."""

    path: str
    target: str


@dataclasses.dataclass
class Outcome:
    """What did not go well.

    Attributes:
        failures: the reason for which there is no result, by path.
        gray: paths of pictures for which the model knew no color.
    """

    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    gray: set[str] = dataclasses.field(default_factory=set)


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
        for opened in _map_ahead(self._pool, self._open, tasks, _OPEN):
            if opened is None:
                continue
            if len(batch) == BATCH or (batch and sum(each.pixels for each in batch) + opened.pixels > _PIXELS):
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
            files.make_folder(os.path.dirname(task.target))
            files.write(task.target, _png(rgb, picture.alpha))
            if color.denormalize_ab(max(ab.max(), -ab.min())) < _VISIBLE:  # the whole may be large
                self.outcome.gray.add(task.path)
            self._done()

    @contextlib.contextmanager
    def _naming(self, path: str) -> Iterator[None]:
        """Keeps what is wrong with a picture from the others."""
        try:
            yield
        except (RejectedImage, UserError) as error:
            self._fail(path, str(error))
        except OSError as error:
            self._fail(path, error.strerror or one_line(error))
        except MemoryError:
            self._fail(path, "more memory than there is")

    def _fail(self, path: str, reason: str) -> None:
        self.outcome.failures[path] = reason
        self._done()


def _map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In], ahead: int
) -> Iterator[_Out]:
    """Calls a function in other threads, some items ahead of the one whose result is asked for; results in order."""
    pending: deque[Future[_Out]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _png(rgb: np.ndarray, alpha: np.ndarray | None) -> bytes:
    buffer, origin = io.BytesIO(), PngInfo()
    origin.add_text("Software", SOFTWARE)
    Image.fromarray(rgb if alpha is None else np.dstack([rgb, alpha])).save(
        buffer, format="PNG", pnginfo=origin, compress_level=_COMPRESSION
    )
    return buffer.getvalue()


def is_result(path: str) -> bool:
    """Whether a file, which exists, was written by `colorize`."""
    try:
        with files.open_binary(path) as file, Image.open(file, formats=("PNG",)) as before:
            return before.info.get("Software") == SOFTWARE
    except (OSError, SyntaxError, ValueError):  # whatever it is, it is not
        return False
