"""Colorizes videos frame by frame: colors that keep still, and the sound as it is. Decoded and encoded by FFmpeg."""

import contextlib
import itertools
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from tqdm import tqdm

from pipeline import files
from pipeline.errors import UserError
from pipeline.image import MAX_PIXELS
from pipeline.rejects import Reason, RejectedImage
from trainer.ahead import map_ahead
from trainer.colorizer import BATCH, PIXELS, Colorizer, Prepared
from trainer.smoothing import Smoother
from trainer.tasks import CONTAINERS, SOFTWARE, Outcome, Task, is_gray

_RATE = Fraction(25)  # frames a second, where a file does not tell
# Of libx264: a loss that is hardly seen. With "mbtree" the same frames give other bytes each time.
_OPTIONS = {"crf": "18", "preset": "medium", "x264-params": "no-mbtree=1"}
_ENCODERS = 8  # threads; another number would give other bytes
_ORIENTATIONS = {  # turns and mirroring by the numbers of `_orientation`
    (1, 0, 0, 1): (0, False), (0, -1, 1, 0): (1, False), (-1, 0, 0, -1): (2, False), (0, 1, -1, 0): (3, False),
    (-1, 0, 0, 1): (0, True), (0, -1, -1, 0): (1, True), (1, 0, 0, -1): (2, True), (0, 1, 1, 0): (3, True),
}  # fmt: skip
_HIGH_DEFINITION = 720  # rows, from which on BT.709 is usual
_UNSPECIFIED = 2  # of the colorspaces of H.273
_CUT_SHORT = 1.0  # seconds that a file may end before it says so
_READING = {"protocol_whitelist": "none"}  # no file opens another, as a playlist would
av.logging.set_level(av.logging.PANIC)  # what goes wrong is raised as well


class _Frame(NamedTuple):
    """An upright frame, uint8 [height, width, 3], and its time and duration (0 if unknown) in units of its stream."""

    rgb: np.ndarray
    time: int
    duration: int


class _Shown(NamedTuple):
    """A frame, and what a model is shown of it."""

    frame: _Frame
    prepared: Prepared


class _Predicted(NamedTuple):
    """A frame, and its a and b."""

    frame: _Frame
    ab: np.ndarray


def is_result(path: str) -> bool:
    """Whether a file, which exists, was written by `colorize`.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with _open(path) as before:
            return _comment(before).endswith(SOFTWARE)
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        return False  # whatever it is


def _comment(container: InputContainer) -> str:
    return container.metadata.get("comment", container.metadata.get("COMMENT", ""))  # MP4's, Matroska's


def colorize(colorizer: Colorizer, task: Task, smoothing: float) -> Outcome:
    """Colorizes a video: H.264 of the same frames at the same times, with its sound.

    Rotation is applied; a side of an odd number of pixels gets one more, for H.264 takes none. What FFmpeg cannot
    decode is left out, and the video named as damaged. Sound that the file cannot hold is encoded anew as AAC.

    Args:
        colorizer: a trained model.
        task: what to read, and what to write.
        smoothing: the part of a thing's last color in its next one, in [0, 1).
    """
    outcome = Outcome()
    with outcome.naming(task.path), _naming():
        with files.aside(task.target) as temporary, _open(task.path) as source:
            reader = _Reader(source)
            colors = _Colors(colorizer, reader, smoothing)
            _write(temporary, task, reader, colors)
        if colors.gray:
            outcome.gray.add(task.path)
        if reader.damaged:
            outcome.damaged[task.path] = reader.damaged
    return outcome


@contextlib.contextmanager
def _naming() -> Iterator[None]:
    """Says whose words FFmpeg's are; those of the system stay as they are."""
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise UserError(f"FFmpeg: {error.strerror}") from error


@contextlib.contextmanager
def _open(path: str) -> Iterator[InputContainer]:
    with files.open_binary(path) as file, av.open(file, "r", options=_READING, metadata_errors="replace") as container:
        yield container


class _Reader:
    """Reads the frames of a video, and on the way its sound.

    Attributes:
        container: the open file.
        shape: rows and columns of an upright frame.
        unit: of times, in seconds.
        rate: frames a second, about.
        aspect: of an upright pixel, its width by its height; None where nothing says so.
        audio: the streams of sound.
        count: of frames, where the file tells.
        damaged: parts that could not be decoded, so far.
    """

    def __init__(self, container: InputContainer):
        self.container = container
        self.audio = [stream for stream in container.streams.audio if stream.codec_context is not None]
        self.damaged = len(container.streams.audio) - len(self.audio)  # of which no codec is known
        self._met: list[Packet] = []
        # When the file begins, in seconds: the clocks of broadcasts show any time.
        self._start = max(Fraction(0), Fraction(container.start_time or 0, av.time_base))
        best = container.streams.best("video")
        if not isinstance(best, VideoStream) or best.codec_context is None:
            raise RejectedImage(Reason.NOT_AN_IMAGE, "a file without frames that can be decoded")
        self._video = best
        self._video.thread_type = "AUTO"
        _check_size(best.codec_context.width, best.codec_context.height)  # before one is decoded
        self._decoded = self._decode()
        self._first = next(self._decoded, None)
        if self._first is None:
            raise RejectedImage(Reason.NOT_AN_IMAGE, "a file without frames that can be decoded")
        self._size = _check_size(self._first.width, self._first.height)
        self._turns, self._is_mirrored = _orientation(self._first)
        lying = self._turns % 2 == 1
        self.shape = self._size[:: 1 if lying else -1]
        self.unit = best.time_base or 1 / _RATE
        self.rate = best.average_rate or best.guessed_rate or _RATE
        self.count = best.frames or None
        self.aspect = best.sample_aspect_ratio
        if self.aspect and lying:
            self.aspect = 1 / self.aspect

    def frames(self) -> Iterator[_Frame]:
        """All frames, in the order of their times."""
        assert self._first is not None
        step = max(1, round(1 / self.rate / self.unit))
        start = round(self._start / self.unit)
        time = (self._first.pts or 0) - start - step
        for frame in itertools.chain([self._first], self._decoded):
            time = max(time + 1, time + step if frame.pts is None else frame.pts - start)
            yield _Frame(self._upright(frame), time, frame.duration or 0)

    def sound(self) -> list[Packet]:
        """What was met of the sound since this was asked for last."""
        met, self._met = self._met, []
        return met

    def _upright(self, frame: VideoFrame) -> np.ndarray:
        width, height = self._size
        # Damaged ones may have another size. Where nothing says how colors are encoded, large ones are taken for high
        # definition, as players do.
        assumed = Colorspace.ITU709 if height >= _HIGH_DEFINITION else Colorspace.ITU601
        colorspace = assumed if frame.colorspace == _UNSPECIFIED else None
        rgb = frame.to_ndarray(format="rgb24", width=width, height=height, src_colorspace=colorspace)
        upright = np.rot90(rgb, self._turns)
        return np.ascontiguousarray(upright[:, ::-1] if self._is_mirrored else upright)

    def _decode(self) -> Iterator[VideoFrame]:
        for packet in self._packets():
            if packet.stream is not self._video:
                self._met.append(packet)
                continue
            try:
                for frame in packet.decode():
                    self.damaged += frame.is_corrupt
                    yield frame
            except av.FFmpegError:
                self.damaged += 1

    def _packets(self) -> Iterator[Packet]:
        """Frames and sound as they lie in the file, and last what tells a decoder that there are no more."""
        end = 0.0  # seconds
        try:
            for packet in self.container.demux(self._video, *self.audio):
                if packet.pts is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream is self._video:
                    yield packet
                elif packet.dts is not None:
                    yield self._from_start(packet)
        except av.FFmpegError:
            self.damaged += 1
            return
        self.damaged += end < self._promised_end() - _CUT_SHORT

    def _from_start(self, packet: Packet) -> Packet:
        start = round(self._start / packet.time_base)
        packet.dts = (packet.dts or 0) - start
        packet.pts = None if packet.pts is None else packet.pts - start
        return packet

    def _promised_end(self) -> float:
        """When the file says that frames and sound end, in seconds; 0 where it does not, or speaks of other streams."""
        own = [self._video, *self.audio]
        ends = [
            ((each.start_time or 0) + each.duration) * each.time_base
            for each in own
            if each.duration and each.time_base
        ]
        if ends:
            return float(max(ends))
        if len(self.container.streams) > len(own):
            return 0.0
        return (self.container.duration or 0) / av.time_base  # Matroska counts it from 0, whenever it starts


def _orientation(frame: VideoFrame) -> tuple[int, bool]:
    """By how many quarters a frame is to be turned, counterclockwise, and whether it is mirrored then."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 0, False
    # x' = a x + c y, y' = b x + d y, in units of 1 / 65536, with a column for translation between them.
    matrix = np.frombuffer(data, np.int32)[[0, 1, 3, 4]]
    found = tuple(np.rint(matrix / 65536).astype(int).tolist())
    return _ORIENTATIONS.get(found, (0, False))  # what is no quarter, or nothing at all, is taken as upright


def _check_size(width: int, height: int) -> tuple[int, int]:
    if width * height > MAX_PIXELS:
        raise RejectedImage(Reason.TOO_LARGE, f"{width}x{height} pixels, the limit is {MAX_PIXELS}")
    return width, height


class _Colors:
    """Gives frames color.

    Attributes:
        gray: whether the model knew none for any frame so far.
    """

    def __init__(self, colorizer: Colorizer, reader: _Reader, smoothing: float):
        self.gray = True
        self._colorizer = colorizer
        self._reader = reader
        self._smoother = Smoother(smoothing)

    def frames(self) -> Iterator[_Frame]:
        """All frames in color; some are decoded and some joined while others are predicted."""
        batch = min(BATCH, max(1, PIXELS // math.prod(self._reader.shape)))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            shown = map_ahead(pool, self._prepare, self._reader.frames(), batch)
            yield from map_ahead(pool, self._join, self._predict(shown, batch), batch)

    def _prepare(self, frame: _Frame) -> _Shown:
        return _Shown(frame, self._colorizer.prepare(frame.rgb))

    def _predict(self, shown: Iterator[_Shown], size: int) -> Iterator[_Predicted]:
        while batch := list(itertools.islice(shown, size)):
            predicted = self._colorizer.predict([each.prepared for each in batch])
            for (frame, _), ab in zip(batch, predicted, strict=True):
                self.gray &= is_gray(ab)
                yield _Predicted(frame, self._smoother.smooth(frame.rgb, ab))

    def _join(self, predicted: _Predicted) -> _Frame:
        frame, ab = predicted
        return frame._replace(rgb=self._colorizer.join(frame.rgb, ab))


def _write(path: str, task: Task, reader: _Reader, colors: _Colors) -> None:
    container = CONTAINERS[os.path.splitext(task.target)[1]]
    options = {"fflags": "+bitexact"} | ({} if container == "matroska" else {"movflags": "+faststart"})
    with (
        av.open(path, "w", format=container, options=options) as output,
        tqdm(total=reader.count, desc=os.path.basename(task.path), unit="frame", disable=None) as bar,
    ):
        writer = _Writer(output, reader)
        for frame in colors.frames():
            writer.write(frame)
            bar.update()
        writer.end()


class _Writer:
    """Writes frames as H.264, and the sound as it is."""

    def __init__(self, output: OutputContainer, reader: _Reader):
        self._output = output
        self._reader = reader
        self._video = output.add_stream("libx264", rate=reader.rate, options=_OPTIONS)
        height, width = reader.shape
        self._video.width, self._video.height = width + width % 2, height + height % 2
        self._video.pix_fmt = "yuv420p"
        context = self._video.codec_context
        context.time_base = reader.unit
        context.thread_count = _ENCODERS
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        if reader.aspect:
            context.sample_aspect_ratio = reader.aspect
        self._audio = {stream.index: _Audio(output, stream) for stream in reader.audio}
        self._durations: dict[int, int] = {}  # by time, of frames that the encoder holds
        output.metadata.update(
            reader.container.metadata | {"comment": f"{_comment(reader.container)} {SOFTWARE}".strip()}
        )

    def write(self, frame: _Frame) -> None:
        """Adds a frame, and the sound that was met on the way to it."""
        odd = [(0, side % 2) for side in frame.rgb.shape[:2]]
        picture = VideoFrame.from_ndarray(np.pad(frame.rgb, [*odd, (0, 0)], mode="edge"), format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        picture.pts, picture.time_base = frame.time, self._reader.unit
        self._durations[frame.time] = frame.duration
        self._encode(picture)
        self._copy_sound()

    def end(self) -> None:
        """Adds what was held back."""
        self._copy_sound()
        self._encode(None)
        for stream in self._audio.values():
            self._output.mux(stream.end())

    def _encode(self, picture: VideoFrame | None) -> None:
        for packet in self._video.encode(picture):
            packet.duration = self._durations.pop(packet.pts or 0, 0)  # which else the rate would give
            self._output.mux(packet)

    def _copy_sound(self) -> None:
        for packet in self._reader.sound():
            try:
                self._output.mux(self._audio[packet.stream.index].packets(packet))
            except (av.ArgumentError, av.InvalidDataError):  # no later than the one before it, or not to be decoded
                self._reader.damaged += 1


class _Audio:
    """A stream of sound as it is, or where the file cannot hold such, encoded anew."""

    def __init__(self, output: OutputContainer, source: AudioStream):
        self._source = source
        try:
            self._stream = output.add_stream_from_template(source)
            self._encodes = False
        except ValueError:
            layout = "mono" if source.channels == 1 else "stereo"
            self._stream = output.add_stream("aac", rate=source.rate, layout=layout)
            self._encodes = True
        self._stream.metadata.update(source.metadata)  # its language

    def packets(self, packet: Packet) -> list[Packet]:
        """What a packet of the source becomes."""
        if self._encodes:
            return self._encoded(packet)
        packet.stream = self._stream
        return [packet]

    def end(self) -> list[Packet]:
        """What was held back."""
        return [*self._encoded(None), *self._stream.encode(None)] if self._encodes else []

    def _encoded(self, packet: Packet | None) -> list[Packet]:
        return [each for frame in self._source.codec_context.decode(packet) for each in self._stream.encode(frame)]
