"""What several tests use."""

import io
import threading
import time
from fractions import Fraction

import av
import keras
import numpy as np
import skimage.transform
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing import event_file_loader

from trainer import loop
from trainer.models.base import ColorModel
from trainer.models.koalarization import Koalarization
from trainer.study import manifest
from trainer.study.manifest import Pair, Study

# A program of ours, with the extractor of `tiny_extractor`.
TINY = """
import importlib
from trainer.models import extractor
from pipeline import cli
from tests import helpers
extractor.create = helpers.tiny_extractor
cli.launch(importlib.import_module("{}").main)
"""


class ToyModel(ColorModel):
    """Predicts ab from L by one pointwise layer."""

    takes_features = False
    margin = None

    def __init__(self, config, seed, features):
        inputs = keras.Input((None, None, 1))
        self.network = keras.Model(inputs, keras.layers.Conv2D(2, 1, activation="tanh")(inputs))

    def outputs(self, batch, training):
        return self.network(batch["l_224"], training=training)

    def loss(self, outputs, batch):
        return tf.reduce_mean(tf.abs(outputs - batch["ab_224"]), axis=[1, 2, 3])

    def ab(self, outputs):
        return outputs


class DoubleKoalarization(Koalarization):
    """The network of the paper in float64."""

    def outputs(self, batch, training):
        return super().outputs({name: tf.cast(values, tf.float64) for name, values in batch.items()}, training)

    def loss(self, outputs, batch):
        return tf.cast(super().loss(outputs, {"ab_224": tf.cast(batch["ab_224"], tf.float64)}), tf.float32)

    def ab(self, outputs):
        return tf.cast(outputs, tf.float32)


def tiny_extractor(weights, classes):
    """A network of Inception-ResNet-v2's interface: one convolution."""
    inputs = keras.Input((299, 299, 3))
    x = keras.layers.Conv2D(8, 16, strides=16, activation="relu")(inputs)
    outputs = keras.layers.Dense(classes)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    model.trainable = False
    return model


def train(config, dataset, workdir, strategy=None):
    """Trains in this process; the state at the end."""
    strategy = strategy or tf.distribute.OneDeviceStrategy("/device:CPU:0")
    return loop.train_and_evaluate(config, strategy, dataset.directory, str(workdir))


def weights(run):
    """All tensors of the last checkpoint of a run."""
    reader = tf.compat.v1.train.NewCheckpointReader(str(max((run / "checkpoints").iterdir()) / "state"))
    return {
        name: reader.get_tensor(name).tobytes()
        for name in reader.get_variable_to_shape_map()
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    }


def assert_weights_close(first, second, **tolerance):
    """Of two states."""
    for a, b in zip(first.model.network.get_weights(), second.model.network.get_weights(), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, **tolerance)


class Terminal(io.StringIO):
    """What is written to it can be read back; programs take it for a terminal."""

    def isatty(self):
        return True


def readers():
    """The threads of `pipeline.stream` that run."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader ")]


def all_readers_end():
    """Whether they do within seconds."""
    deadline = time.monotonic() + 10
    while readers() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not readers()


def encoded(rgb, image_format="PNG", **options):
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    (rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def noise(height, width, seed=0):
    """A picture with content that cannot be guessed: uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def events(workdir):
    """All values of the event files below a run: (step, tag, tensor proto)."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        for event in event_file_loader.EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                yield event.step, value.tag, value


def scalars(workdir, tag):
    """The values of a scalar by step, from the event files."""
    return {step: float(tf.make_ndarray(value.tensor)) for step, found, value in events(workdir) if found == tag}


def write_video(path, frames, codec="libx264", sound=None, times=None, last=None, rotation=0, aspect=None):
    """Writes a video of 25 frames a second, or of frames at times in milliseconds, with some seconds of a tone."""
    options = {"movflags": "+faststart"} if str(path).endswith(".mp4") else {}
    with av.open(str(path), "w", options=options) as output:
        streams = []
        if frames:
            stream = output.add_stream(codec, rate=25)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = {"mjpeg": "yuvj420p", "ffv1": "bgr0"}.get(codec, "yuv420p")
            if rotation:
                stream.set_display_rotation(rotation)
            if aspect:
                stream.codec_context.sample_aspect_ratio = aspect
            if times:
                stream.codec_context.time_base = Fraction(1, 1000)
            streams.append(stream)
        if sound:
            streams.append(output.add_stream(sound, rate=44100))
            streams[-1].bit_rate = 64000
        for number, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            output.mux(streams[0].encode(frame))
        if last:
            packets = streams[0].encode(None)
            max(packets, key=lambda packet: packet.pts).duration = last
            output.mux(packets)
        if sound:
            for block in range(20):
                tone = np.sin(np.arange(block * 1024, (block + 1) * 1024) / 10).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = 44100, block * 1024
                output.mux(streams[-1].encode(frame))
        for stream in streams if not last else streams[1:]:
            output.mux(stream.encode(None))


def write_study(folder, count):
    """A study of noise, without a model."""
    names = [f"{number:032x}.png" for number in range(2 * count)]
    (folder / manifest.PICTURES).mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / manifest.PICTURES / name).write_bytes(encoded(noise(30, 40, number)))
    pairs = [Pair(f"{number}.jpg", *names[2 * number : 2 * number + 2]) for number in range(count)]
    manifest.save(str(folder), study := Study(7, 1, tuple(pairs)))
    return study


def exactly_resized(rgb, height, width):
    """The definition of `resize` by scikit-image: mean over the area to shrink, linear to grow; not yet rounded."""
    picture = rgb.astype(np.float64)
    shrunk = min(rgb.shape[0], height), min(rgb.shape[1], width)
    if picture.shape[:2] != shrunk:
        picture = skimage.transform.resize_local_mean(picture, shrunk, channel_axis=-1, preserve_range=True)
    if shrunk != (height, width):
        options = {"order": 1, "mode": "edge", "anti_aliasing": False, "preserve_range": True}
        picture = skimage.transform.resize(picture, (height, width), **options)
    return picture


def soft(height, width, seed=0):
    """A picture whose colors and lightness change slowly, and stay within what can be shown."""
    coarse = noise(4, 5, seed) // 4 + 96
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
