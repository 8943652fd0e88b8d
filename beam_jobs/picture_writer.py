"""References to pictures in color: what is missing is read, shown to a trained model by batches, written as PNGs."""

import dataclasses
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import apache_beam as beam
import cv2
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import ModelHandler
from apache_beam.pvalue import TaggedOutput

from beam_jobs import blocks, counters, rejects, sources, storage
from beam_jobs.blocks import Block
from beam_jobs.job_folder import JobFolder
from beam_jobs.read_ahead import read_ahead
from beam_jobs.rejects import Reject
from beam_jobs.sources import ImageRef
from pipeline import files, image
from pipeline.errors import UserError, one_line
from pipeline.image import Picture
from pipeline.rejects import Reason, RejectedImage
from pipeline.shards import Partition
from trainer import colorizer, devices, pictures, trained, workdir
from trainer.colorizer import BATCH, PIXELS, Colorizer
from trainer.pictures import Result
from trainer.tasks import is_gray
from trainer.trained import Trained

PARTS = 256  # that a collection is dealt to: what a worker takes at a time; with 2,000 pictures batches are full
PARTITION = Partition(0, 0.0, PARTS, 1)
_LOOKERS = 16  # threads: storage takes some 30 ms to say whether there is a file
_LONGEST_NAME = 180  # bytes of a file or folder; systems allow 255, of which what is written aside needs some
_TRIED_AGAIN = (Reason.DUPLICATE_KEY, Reason.UNREADABLE_BYTES)  # of which the bytes say nothing
Count = tuple[tuple[str, str], int]  # of pictures, by their source and what became of them
LISTED, COLORIZED = "listed", "colorized"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What decides over a picture's colors: a run, the step of its checkpoint, and options of `colorizer.load`."""

    work_dir: str
    step: int
    saturation: float
    native_size: bool

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        return dataclasses.asdict(self)


def recipe(work_dir: str, saturation: float, native_size: bool) -> Recipe:
    """That of the last checkpoint of a run.

    Raises:
        UserError: as `colorizer.load`.
    """
    run = _load(work_dir)
    colorizer.create(run, saturation, native_size)  # whether it can be done
    return Recipe(work_dir, run.step, saturation, native_size)


def _load(work_dir: str) -> Trained:
    devices.configure(workdir.load(work_dir)[0].deterministic)
    return trained.load(work_dir)


def part_name(number: int) -> str:
    """The name of a part's report."""
    return f"part-{number:05d}-of-{PARTS:05d}"


def target_name(key: str) -> str:
    """The path of a picture's result below the output: no two keys have the same, and none leads elsewhere."""
    *folders, name = key.split("/")
    # No folder has the name of a result.
    return "/".join(
        [*(_component(folder, r"%|^\.*$|\.(?=png$)", "") for folder in folders), _component(name, "%", ".png")]
    )


def _component(name: str, special: str, suffix: str) -> str:
    """A part of a key as the name of a file or folder; a pattern says what cannot stay in it as it is."""
    escaped = re.sub(special, lambda found: "".join(f"%{ord(letter):02X}" for letter in found[0]) or "%", name)
    room = _LONGEST_NAME - len(suffix)
    if len(escaped.encode()) > room:
        digest = hashlib.blake2b(escaped.encode(), digest_size=16).hexdigest()
        escaped = f"{escaped.encode()[: room - 1 - len(digest)].decode(errors='ignore')}%{digest}"
    return escaped + suffix


class Decoded(NamedTuple):
    """Pictures for one call of a model, and references to them."""

    refs: list[ImageRef]
    pictures: list[Picture]


class Colored(NamedTuple):
    """PNGs by key, and whether the model knew no color for each."""

    keys: list[str]
    results: list[bytes]
    gray: list[bool]


@dataclasses.dataclass(frozen=True)
class PartReport:
    """Which pictures of a part could not be read; `pictures` is a digest of the references to all of it."""

    pictures: str
    rejects: list[Reject]


class FindPictures(beam.DoFn):
    """(part, blocks of references) to what is missing of the part's pictures, decoded.

    Pictures go by batches, in the order of their keys; if one of a batch is missing, all are made anew. So a model is
    shown the same batches, and the last digits are the same, whether a job was killed or not.
    """

    COUNTS, GRAY, REPORTS = "counts", "gray", "reports"

    def __init__(self, output: str):
        self._output = output
        self._job = JobFolder(output)

    def setup(self) -> None:
        """Called once in each worker."""
        cv2.setNumThreads(1)  # the runner's workers already share out the cores

    def process(
        self, element: tuple[tuple[str, int], Iterable[Block]]
    ) -> Iterator[
        Decoded
        | TaggedOutput[Literal["counts"], Count]
        | TaggedOutput[Literal["gray"], str]
        | TaggedOutput[Literal["reports"], str]
    ]:
        """Reads what is missing, and reports what cannot be read."""
        name, refs = part_name(element[0][1]), [ref for block in element[1] for ref in blocks.unpack(block)]
        refs.sort(key=lambda ref: (ref.key, ref.path, ref.offset))
        digest = sources.digest(refs)
        unique, rejected = _unique(refs)
        known = {reject.key: reject for reject in self._unreadable(name, digest)}
        missing, standing, gray = self._look(unique, known.keys())
        for ref in missing:
            known.pop(ref.key, None)
        rejected += known.values()
        yield from self._read(missing, rejected)
        rejected.sort(key=lambda reject: (reject.key, reject.path))
        self._job.write_report(name, PartReport(digest, rejected))
        for source, number in Counter(ref.source for ref in standing).items():
            yield TaggedOutput(self.COUNTS, ((source, COLORIZED), number))
        for reject in rejected:
            counters.count(f"rejected_{reject.reason.value}")
            yield TaggedOutput(self.COUNTS, ((reject.source, reject.reason.value), 1))
        for key in gray:
            yield TaggedOutput(self.GRAY, key)
        if rejected:
            yield TaggedOutput(self.REPORTS, name)

    def _unreadable(self, name: str, digest: str) -> Iterator[Reject]:
        """What an earlier job found no picture behind, of the same references; it need not be tried again."""
        report = self._job.read_report(name, PartReport)
        if report is not None and report.pictures == digest:
            yield from (reject for reject in report.rejects if reject.reason not in _TRIED_AGAIN)

    def _look(self, refs: Sequence[ImageRef], unreadable: Set[str]) -> tuple[list[ImageRef], list[ImageRef], list[str]]:
        """Which are missing, with their neighbors; the others; and the keys of those of the others that are gray."""
        missing: list[ImageRef] = []
        standing: list[ImageRef] = []
        gray: list[str] = []
        with ThreadPoolExecutor(_LOOKERS) as pool:
            results = dict(zip((ref.key for ref in refs), pool.map(self._result, refs), strict=True))
        for group in _batches(refs):
            if any(results[ref.key] is None and ref.key not in unreadable for ref in group):
                missing += group
                continue
            there = [ref for ref in group if ref.key not in unreadable]
            standing += there
            gray += [ref.key for ref in there if (result := results[ref.key]) is not None and result.is_gray]
        return missing, standing, gray

    def _result(self, ref: ImageRef) -> Result | None:
        """What stands there of a picture, if it was made of what is there now."""
        path = FileSystems.join(self._output, target_name(ref.key))
        try:
            with storage.open_binary(path) as file:
                result = pictures.read_result(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {one_line(error)}; start the job again") from error
        return result if result is not None and result.origin == sources.digest([ref]) else None

    def _read(self, refs: Sequence[ImageRef], rejected: list[Reject]) -> Iterator[Decoded]:
        """Decodes pictures, by batches; of large ones, fewer at a time."""
        last = {group[-1].key for group in _batches(refs)}
        batch, held = Decoded([], []), 0
        for ref, data in read_ahead(refs):
            try:
                picture = image.decode_picture(rejects.read(data))
            except RejectedImage as error:
                rejected.append(Reject.of(ref, error))
            else:
                size = picture.rgb.shape[0] * picture.rgb.shape[1]
                if batch.refs and held + size > PIXELS:
                    yield batch
                    batch, held = Decoded([], []), 0
                batch.refs.append(ref)
                batch.pictures.append(picture)
                held += size
            if ref.key in last and batch.refs:
                yield batch
                batch, held = Decoded([], []), 0


def _unique(refs: Sequence[ImageRef]) -> tuple[list[ImageRef], list[Reject]]:
    """The first picture of each key, and the others; those of one key stand next to each other."""
    unique: list[ImageRef] = []
    others: list[Reject] = []
    for ref in refs:
        if unique and unique[-1].key == ref.key:
            others.append(Reject.of(ref, rejects.duplicate(unique[-1])))
        else:
            unique.append(ref)
    return unique, others


def _batches(refs: Sequence[ImageRef]) -> Iterator[Sequence[ImageRef]]:
    return (refs[start : start + BATCH] for start in range(0, len(refs), BATCH))


class ColorizerHandler(ModelHandler[Decoded, Colored, Colorizer]):
    """Gives pictures color; an element is a batch, whose composition depends on the collection alone.

    Args:
        recipe: of the colors.
    """

    def __init__(self, recipe: Recipe):
        super().__init__()
        self._recipe = recipe

    def load_model(self) -> Colorizer:
        """Called once in each process.

        Raises:
            UserError: the run has gone on, or is out of the worker's reach.
        """
        own = self._recipe
        run = _load(own.work_dir)
        if run.step != own.step:
            raise UserError(
                f"--workdir={own.work_dir} is at step {run.step}, and the job began with step {own.step}; let the run "
                "end, and start the job anew"
            )
        return colorizer.create(run, own.saturation, own.native_size)

    def run_inference(
        self, batch: Sequence[Decoded], model: Colorizer, inference_args: dict[str, Any] | None = None
    ) -> Iterator[Colored]:
        """The results of each of some batches."""
        for each in batch:
            yield self._colorize(each, model)

    def batch_elements_kwargs(self) -> dict[str, Any]:
        """A batch at a time."""
        return {"min_batch_size": 1, "max_batch_size": 1}

    def _colorize(self, batch: Decoded, model: Colorizer) -> Colored:
        predicted = model.predict([model.prepare(picture.on_white()) for picture in batch.pictures])
        gray = list(map(is_gray, predicted))
        results = [
            pictures.encode(model.join(picture.rgb, ab), picture.alpha, without_color, sources.digest([ref]))
            for ref, picture, ab, without_color in zip(*batch, predicted, gray, strict=True)
        ]
        return Colored([ref.key for ref in batch.refs], results, gray)


class WritePictures(beam.DoFn):
    """Writes results under their final names; yields counts and, tagged `GRAY`, the keys of those without color."""

    GRAY = "gray"

    def __init__(self, output: str):
        self._output = output
        self._aside = JobFolder(output).folder
        self._made: set[str] = set()

    def process(self, colored: Colored) -> Iterator[Count | TaggedOutput[Literal["gray"], str]]:
        """Writes a batch."""
        for key, result, gray in zip(*colored, strict=True):
            path = FileSystems.join(self._output, target_name(key))
            if (folder := os.path.dirname(path)) not in self._made and "://" not in path:  # a store has no folders
                files.make_folder(folder)
                self._made.add(folder)
            with storage.create(path, self._aside) as file:
                file.write(result)
            counters.count("colorized")
            yield (key.partition("/")[0], COLORIZED), 1
            if gray:
                yield TaggedOutput(self.GRAY, key)
