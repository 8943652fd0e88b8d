"""How fast pictures and videos get color, against the model alone, and what smoothing does to the colors of a video.

    python -m benchmarks.colorize --pictures=FOLDER

| way             | what it does                                                                                    |
|-----------------|-------------------------------------------------------------------------------------------------|
| pictures        | `trainer.pictures`, 1,000 files on the disk to PNGs; beside it the model alone                  |
| native size     | the same of 120 files with `--native_size`; beside it without                                   |
| without a model | `pictures` with colors that are there at once: what would limit a faster device                 |
| video           | `trainer.video`, 640x360 with sound; beside it the model alone                                  |
| smoothing       | the colors of a film: how they flicker and how far from the truth they are, by `--smoothing`    |

The network and the extractor are those of the paper, at full size; the weights are random. Every way runs in a process
of its own, in turn, as often as asked. A way and what stands beside it alternate, in segments of some pictures, and
each segment is compared with the one before it, for a machine's speed changes from minute to minute by more than what
is measured; medians over segments and then over runs are shown. The model alone is `Colorizer.predict` on batches of
the same pictures, which are prepared before the clock runs. CPU time is a picture's, of all threads; where others are
at work on the same cores its ratio is the one to trust, for of these a way with more threads gets more. Peak memory is
the process's at its end, and in the last column that, of what it was after the first segment.

Smoothing is measured with another model, the demo's with a random extractor, trained for minutes on the pictures that
the film shows. The camera pans over one photograph after another by whole pixels, and each frame has grain of its own.
Flicker is the mean distance of a and b of a frame from those of the one before it, moved as the camera is; the error
is that from the truth, in all frames and in the first ones after a cut. The last column is the error where smoothing is
given the true colors in place of the model's: what it spoils by itself.
"""

import itertools
import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

from beam_jobs import embed, preprocess
from benchmarks import flicker, harness
from pipeline import cli, image, tensors
from pipeline.errors import UserError
from pipeline.image import ResizeMode
from pipeline.rejects import RejectedImage
from trainer import colorizer, pictures, train, video
from trainer.colorize import DEFAULT_SMOOTHING
from trainer.colorizer import Colorizer, FixedSizeColorizer, Prepared
from trainer.tasks import Outcome, Task

_LOGGER = logging.getLogger("benchmarks.colorize")
_SEGMENTS, _SEGMENT = 10, 100  # of the pictures
_NATIVE_SEGMENTS, _NATIVE_SEGMENT = 5, 24
_VIDEO_SEGMENTS, _VIDEO_FRAMES = 5, 48
_SHOWN = 8  # photographs of the film, and all that its model was trained on
_COPIES = 8  # of each, so that an epoch has some steps
_STRENGTHS = (0.0, 0.5, 0.8, 0.9, 0.95)
_Segment = Sequence[Path]
# Colorizes a segment: the seconds and the CPU seconds that each of its pictures took, float64 [2].
_Side = Callable[[_Segment], np.ndarray]


def _store(own: list[bytes], work: Path) -> None:
    """Makes files, two runs and a video."""
    shown = list(itertools.islice(itertools.cycle(own[:: max(1, len(own) // _SHOWN)]), _SHOWN))
    photographs = [_photograph(data) for data in shown]
    _write(work / "jpegs", itertools.islice(itertools.cycle(own), _SEGMENTS * _SEGMENT))
    _write(work / "shown", shown)
    _write(work / "trained", shown * _COPIES)
    _train(work)
    _write_clip(work / "clip.mp4", photographs[0])


def _photograph(data: bytes) -> np.ndarray:
    try:
        return image.decode(data)
    except RejectedImage as error:
        raise UserError(f"--pictures holds a file that is no picture ({error}); name a folder of JPEGs") from error


def _write(folder: Path, files: Iterable[bytes]) -> None:
    folder.mkdir()
    for number, data in enumerate(files):
        (folder / f"{number:06d}.jpg").write_bytes(data)


def _train(work: Path) -> None:
    """Two runs on one dataset: `full` is of full size, `film` has learnt the colors of its pictures."""
    data = f"{work}/data"
    options = [f"--config.dataset.{each}" for each in ("validation_fraction=0", "filters.reject_grayscale=false")]
    options += ["--config.dataset.filters.min_chroma=0", f"--source=images:{work}/trained", f"--output={data}"]
    preprocess.main(["preprocess", "--config=configs/demo.py", *options])
    embed.main(["embed", "--config=configs/demo.py", f"--data={data}"])
    runs = {
        "full": ("koalarization", "--config.model.feature_weights=none", "--config.epochs_per_learning_rate=1,1"),
        "film": ("demo", "--config.horizontal_flip=false", "--config.epochs_per_learning_rate=50,10"),
    }
    for name, (config, *extra) in runs.items():
        train.main(["train", f"--config=configs/{config}.py", f"--data={data}", f"--workdir={work}/{name}", *extra])


def _write_clip(path: Path, photograph: np.ndarray) -> None:
    """Writes a video with a tone as long as it is."""
    with av.open(str(path), "w") as output:
        frames, sound = output.add_stream("libx264", rate=25), output.add_stream("aac", rate=44100)
        for number, rgb in enumerate(flicker.pan(photograph, _VIDEO_FRAMES)):
            if not number:
                frames.height, frames.width = rgb.shape[:2]
            output.mux(frames.encode(VideoFrame.from_ndarray(rgb, format="rgb24")))
        times = np.arange(_VIDEO_FRAMES * 44100 // 25, dtype=np.float32)
        tone = AudioFrame.from_ndarray(np.sin(times / 10)[None], format="fltp", layout="mono")
        tone.sample_rate, tone.pts = 44100, 0
        output.mux(sound.encode(tone))
        for stream in (frames, sound):
            output.mux(stream.encode(None))


def _measure(way: str, work: Path) -> harness.Figures:
    return _WAYS[way](work)


def _load(work: Path, native_size: bool = False) -> Colorizer:
    """The model at full size, which has compiled what it needs."""
    own = colorizer.load(f"{work}/full", native_size=native_size)
    for count in (colorizer.BATCH, 1):  # any number of pictures, of any size
        own.predict([own.prepare(np.zeros((300 + count, 400 + count, 3), np.uint8))] * count)
    return own


def _pictures(work: Path) -> harness.Figures:
    own = _load(work)
    return _alternate(_segments(work, _SEGMENTS, _SEGMENT), _flow(own), _bare(own))


def _native_size(work: Path) -> harness.Figures:
    native, own = _load(work, native_size=True), _load(work)
    return _alternate(_segments(work, _NATIVE_SEGMENTS, _NATIVE_SEGMENT), _flow(native), _flow(own))


def _without_a_model(work: Path) -> harness.Figures:
    segments = _segments(work, _SEGMENTS, _SEGMENT)
    ab = tensors.from_image(image.decode(segments[0][0].read_bytes()), ResizeMode.STRETCH)["ab_224"]

    class Instant(FixedSizeColorizer):
        """Gives every picture the colors of the first."""

        def predict(self, batch: Sequence[Prepared]) -> list[np.ndarray]:
            return [ab] * len(batch)

    own = Instant(None, ResizeMode.STRETCH)  # type: ignore[arg-type]
    return _alternate(segments, _flow(own))


def _video(work: Path) -> harness.Figures:
    own = _load(work)
    return _alternate([[work / "clip.mp4"]] * _VIDEO_SEGMENTS, _video_flow(own), _bare(own))


def _segments(work: Path, count: int, size: int) -> list[_Segment]:
    paths = sorted((work / "jpegs").iterdir())
    return [paths[number * size : (number + 1) * size] for number in range(count)]


def _alternate(segments: Sequence[_Segment], own: _Side, beside: _Side | None = None) -> harness.Figures:
    """Runs a way and what stands beside it, segment by segment; the medians."""
    costs, others, peaks = [], [], []
    for number, segment in enumerate(segments):
        if beside:
            others.append(beside(segment))
        costs.append(own(segment))
        peaks.append(_peak_mb())
        _LOGGER.info("segment %d of %d: %.3f s a picture", number + 1, len(segments), costs[-1][0])
    seconds, cpu = np.median(costs, axis=0).tolist()
    figures = {"seconds": seconds, "cpu": cpu, "first_mb": peaks[0], "all_mb": peaks[-1]}
    return figures | _compare(np.array(costs), np.array(others)) if beside else figures


def _compare(costs: np.ndarray, others: np.ndarray) -> harness.Figures:
    """Of each segment with what went before it; both are float64 [segments, 2]."""
    ratio, cpu_ratio = np.median(costs / others, axis=0).tolist()
    beside, _ = np.median(others, axis=0).tolist()
    added = float(np.median(costs[:, 1] - others[:, 1]))
    return {"beside": beside, "ratio": ratio, "cpu_ratio": cpu_ratio, "added_cpu": added}


def _flow(own: Colorizer) -> _Side:
    """From files to PNGs."""

    def run(segment: _Segment) -> np.ndarray:
        with tempfile.TemporaryDirectory(dir=segment[0].parent) as output:
            tasks = [Task(str(path), f"{output}/{path.stem}.png") for path in segment]
            start = _now()
            outcome = pictures.colorize(own, tasks, lambda: None)
            spent = _now() - start
        _check(outcome)
        return spent / len(segment)

    return run


def _video_flow(own: Colorizer) -> _Side:
    """From a video to another."""

    def run(segment: _Segment) -> np.ndarray:
        (path,) = segment
        with tempfile.TemporaryDirectory(dir=path.parent) as output:
            start = _now()
            outcome = video.colorize(own, Task(str(path), f"{output}/{path.name}"), DEFAULT_SMOOTHING)
            spent = _now() - start
        _check(outcome)
        return spent / _VIDEO_FRAMES

    return run


def _check(outcome: Outcome) -> None:
    for path, reason in outcome.failures.items():
        raise UserError(f"{path} cannot be colorized ({reason}); name a folder of JPEGs")


def _bare(own: Colorizer) -> _Side:
    """The model alone, on pictures that are prepared before the clock runs."""

    def run(segment: _Segment) -> np.ndarray:
        spent, count = np.zeros(2), 0
        decoded = itertools.chain.from_iterable(map(_decode, segment))
        while batch := [own.prepare(rgb) for rgb in itertools.islice(decoded, colorizer.BATCH)]:
            start = _now()
            own.predict(batch)
            spent += _now() - start
            count += len(batch)
        return spent / count

    return run


def _decode(path: Path) -> Iterator[np.ndarray]:
    """A picture, or all frames of a video."""
    if path.suffix == ".jpg":
        yield image.decode(path.read_bytes())
        return
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def _now() -> np.ndarray:
    return np.array([time.monotonic(), harness.cpu_seconds()])


def _peak_mb() -> float:
    """The most memory of this process; what `getrusage` says counts that of the process that started it."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024


def _smoothing(work: Path) -> harness.Figures:
    photographs = [image.decode(path.read_bytes()) for path in sorted((work / "shown").iterdir())]
    measured = flicker.measure(colorizer.load(f"{work}/film"), photographs, _STRENGTHS)
    figures: harness.Figures = {}
    for strength, (predicted, true) in zip(_STRENGTHS, measured, strict=True):
        figures |= {f"{name} {strength}": value for name, value in predicted._asdict().items()}
        figures[f"true {strength}"] = true.error
    return figures


_WAYS: dict[str, Callable[[Path], harness.Figures]] = {
    "pictures": _pictures,
    "native size": _native_size,
    "without a model": _without_a_model,
    "video": _video,
    "smoothing": _smoothing,
}


def _table(medians: dict[str, harness.Figures], work: Path) -> Iterator[str]:
    yield "| way | images/s | beside it | ratio of time | CPU ms | more | ratio of CPU | peak MB | of the first |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for way, figures in medians.items():
        if way != "smoothing":
            yield f"| {way} | {' | '.join(_cells(figures))} |"
    yield ""
    yield "| smoothing | flicker | error | after a cut | error of true colors |"
    yield "|---|---|---|---|---|"
    for strength in _STRENGTHS:
        values = (medians["smoothing"][f"{name} {strength}"] for name in (*flicker.Flicker._fields, "true"))
        yield f"| {strength:g} | {' | '.join(f'{value:.2f}' for value in values)} |"


def _cells(figures: harness.Figures) -> Iterator[str]:
    compared = "ratio" in figures
    yield f"{1 / figures['seconds']:.2f}"
    yield f"{1 / figures['beside']:.2f}" if compared else ""
    yield f"{figures['ratio']:.3f}" if compared else ""
    yield f"{figures['cpu'] * 1e3:.0f}"
    yield f"{figures['added_cpu'] * 1e3:.0f}" if compared else ""
    yield f"{figures['cpu_ratio']:.3f}" if compared else ""
    yield f"{figures['all_mb']:.0f}"
    yield f"{figures['all_mb'] / figures['first_mb']:.3f}"


if __name__ == "__main__":
    benchmark = harness.Benchmark("benchmarks.colorize", __doc__, list(_WAYS), _store, _measure, _table, repetitions=1)
    cli.launch(benchmark.main)
