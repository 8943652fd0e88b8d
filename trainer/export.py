r"""Writes a trained model for programs without this one.

    python -m trainer.export --workdir=RUN --output=DIR

DIR, which must not hold anything yet, is given:

    saved_model/    for TensorFlow alone: the bytes of pictures to those of PNGs, or lightness to RGB, at any size
    model.keras     for Keras alone: from the tensors of a picture to its normalized a and b
    model.onnx      lightness to RGB, at any size, for ONNX Runtime; where tf2onnx and onnxruntime are installed
    export.json     what goes in and out of each, and which step of which run it is of

Each was read again and colorized a picture as trainer.colorize does, but for rounding, before DIR gets its name.
"""

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from pipeline import cli, color, files, image
from pipeline.errors import UserError, one_line
from pipeline.loading import quiet_loading
from trainer import serving, trained
from trainer.colorizer import FixedSizeColorizer
from trainer.files import writing
from trainer.serving import Server
from trainer.trained import Trained

_LOGGER = logging.getLogger("trainer.export")
DESCRIPTION = "export.json"
SAVED_MODEL, KERAS, ONNX = "saved_model", "model.keras", "model.onnx"
_LAST = f"{SAVED_MODEL}/saved_model.pb"  # without it, nothing takes a folder for a saved model
_OPSET = 18  # of ONNX
_LARGEST_DIFFERENCE = 1  # of 255 levels: what rounding makes of the last digits
_RGB = "uint8 [N, height, width, 3], of any size"
_LIGHTNESS = "float32 [N, height, width, 1], of any size: L in [0, 100], which the result keeps"
_NORMALIZED_L = "L / 50 - 1 of the picture, {0}x{0}, 8-bit levels resampled by area: float32 [N, {0}, {0}, {1}]"
_FORMS: dict[str, dict[str, object]] = {
    SAVED_MODEL: {
        "signatures": {
            "serving_default": {
                "image_bytes": "string [N]: JPEG, PNG, WebP, BMP (24 or 32 bits, plain) or GIF (without transparency); "
                "EXIF orientation is applied where its block stands in the first 64 KiB of a JPEG or PNG",
                "png_bytes": "string [N]: PNGs of 8 bits, of the same sizes and transparency",
            },
            "lightness": {"lightness": _LIGHTNESS, "rgb": _RGB},
        }
    },
    KERAS: {
        "l_224": _NORMALIZED_L.format(224, 1),
        "l_299": _NORMALIZED_L.format(299, 3) + ", one channel three times",
        "result": "float32 [N, 224, 224, 2]: a / 128 and b / 128",
    },
    ONNX: {"lightness": _LIGHTNESS, "rgb": _RGB},
}


class _LeftOut(Exception):
    """A form that the model or the installation does not allow; the text says why."""


def main(argv: Sequence[str]) -> None:
    """Exports the run that a command line names."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "The directory of a training run.", flag_values=values)
    flags.DEFINE_string("output", None, "The directory for the exported model, a new one.", flag_values=values)
    cli.parse_flags(values, argv, __doc__)
    cli.require(values, "workdir", "output")
    export(values.workdir, values.output)


def export(work_dir: str, output: str) -> None:
    """Exports the last checkpoint of a run.

    Args:
        work_dir: of the run.
        output: a directory, local or remote, that does not exist or is empty.

    Raises:
        UserError: no such run, a directory that is not empty or cannot be written, or what was written does not
            colorize as the model does.
    """
    _make_way(output)
    run = trained.load(work_dir)
    with files.folder_aside(output, first=DESCRIPTION, last=_LAST) as folder:
        differences = _write_forms(run, folder)
        description = {
            "run": work_dir, "step": run.step, "model": run.config.model.name,
            "resize_mode": run.dataset.resize_mode.value, "tensorflow": tf.__version__,
            "forms": {
                name: {**_FORMS[name], "largest_difference_of_255": difference}
                for name, difference in differences.items()
            },
        }  # fmt: skip
        files.write(os.path.join(folder, DESCRIPTION), json.dumps(description, indent=1).encode())
    _LOGGER.info("step %d is exported to %s", run.step, output)


def _make_way(output: str) -> None:
    """Looks whether a directory is empty; what an export has left that was killed while it copied is deleted."""
    try:
        found = files.names(output)
        if found and _is_left_over(output, found):
            _LOGGER.info("%s holds what an export has left that was killed, and is deleted", output)
            files.remove_folder(output, first=_LAST, last=DESCRIPTION)  # by which it is known
            found = []
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--output={output} cannot be used: {one_line(error)}; name a new directory") from error
    if found:
        raise UserError(f"--output={output} holds {found[0]}; name a new directory")


def _is_left_over(output: str, found: Sequence[str]) -> bool:
    own = {DESCRIPTION, SAVED_MODEL, KERAS, ONNX}
    names = {files.TEMPORARY.sub("", name.rstrip("/")) for name in found}
    if "://" not in output or not names <= own or files.exists(f"{output}/{_LAST}"):
        return False
    return DESCRIPTION in names or files.is_empty(output)  # but for what stands for a folder


class _Sample:
    """A gray picture, and what `trainer.colorize` makes of it."""

    def __init__(self, run: Trained):
        blots = np.random.default_rng(0).integers(0, 256, (9, 12, 1), dtype=np.uint8)
        self.rgb = np.repeat(image.resize(blots, 333, 500)[..., None], 3, axis=-1)
        self.lightness = color.rgb_to_l(self.rgb)[None, ..., None]
        self.colorizer = FixedSizeColorizer(run.model, run.dataset.resize_mode)
        self.prepared = self.colorizer.prepare(self.rgb)
        (self._expected,) = self.colorizer.colorize([self.rgb])

    def compare(self, name: str, found: np.ndarray) -> int:
        """The largest difference, in levels.

        Raises:
            UserError: it is more than rounding makes.
        """
        difference = int(np.abs(found.astype(int) - self._expected).max())
        if difference > _LARGEST_DIFFERENCE:
            raise UserError(
                f"{name} differs from trainer.colorize by {difference} of 255 levels, so that nothing is exported; "
                "report this"
            )
        return difference


def _write_forms(run: Trained, folder: str) -> dict[str, int]:
    """Writes and compares each form that there can be; the largest difference of each, in levels."""
    sample, server = _Sample(run), Server(run.model, run.dataset.resize_mode)
    forms: dict[str, Callable[[str], np.ndarray]] = {
        SAVED_MODEL: lambda path: _write_saved_model(server, path, sample),
        KERAS: lambda path: _write_keras(run, path, sample),
        ONNX: lambda path: _write_onnx(server, path, sample),
    }
    differences = {}
    for name, write in forms.items():
        path = os.path.join(folder, name)
        try:
            differences[name] = sample.compare(name, write(path))
        except _LeftOut as reason:
            _LOGGER.warning("WARNING: %s is left out: %s", name, reason)
            continue
        megabytes = sum(os.path.getsize(each) for each, _ in files.find(path)) / 1e6
        _LOGGER.info("%s: %.1f MB, at most %d of 255 levels from colorize", name, megabytes, differences[name])
    return differences


def _write_saved_model(server: Server, path: str, sample: _Sample) -> np.ndarray:
    """Writes it, reads it again, and colorizes by both signatures: uint8 [2, height, width, 3]."""
    with writing(path):
        tf.saved_model.save(
            server, path, signatures={"serving_default": server.colorize, "lightness": server.colorize_lightness}
        )
    data = image.encode_png(sample.rgb)
    with quiet_loading():
        signatures = tf.saved_model.load(path).signatures
        (png,) = signatures["serving_default"](image_bytes=tf.constant([data]))["png_bytes"].numpy()
        (rgb,) = signatures["lightness"](lightness=tf.constant(sample.lightness))["rgb"].numpy()
    return np.stack([image.decode(png), rgb])


def _write_keras(run: Trained, path: str, sample: _Sample) -> np.ndarray:
    """Writes it, reads it again, and colorizes."""
    try:
        model = serving.to_keras(run.model)
    except (TypeError, ValueError) as error:  # what Keras says of TensorFlow's operations
        raise _LeftOut(f"model '{run.config.model.name}' is not of Keras's operations: {one_line(error)}") from error
    with writing(path):
        model.save(path)
    inputs = {name: tf.constant(getattr(sample.prepared, name)[None]) for name in ("l_224", "l_299")}
    (ab,) = keras.saving.load_model(path)(inputs).numpy()
    return sample.colorizer.join(sample.rgb, sample.colorizer.unpad(ab, *sample.rgb.shape[:2]))


def _write_onnx(server: Server, path: str, sample: _Sample) -> np.ndarray:
    """Writes it, reads it again, and colorizes."""
    if any(importlib.util.find_spec(name) is None for name in ("tf2onnx", "onnxruntime")):
        raise _LeftOut("it needs tf2onnx and onnxruntime; install koalarization[onnx]")
    import onnxruntime  # most installations have none
    import tf2onnx

    function = server.colorize_at_once
    try:
        with writing(path):
            tf2onnx.convert.from_function(function, function.input_signature, opset=_OPSET, output_path=path)
    except (ValueError, NotImplementedError) as error:  # of operations that it does not know
        raise _LeftOut(f"tf2onnx cannot convert the model: {one_line(error)}") from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ((rgb,),) = session.run(["rgb"], {"lightness": sample.lightness})
    return rgb


if __name__ == "__main__":
    cli.launch(main)
