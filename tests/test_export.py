import dataclasses
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline import cli, color, image
from pipeline import files as own_files
from pipeline.errors import UserError
from pipeline.image import ResizeMode
from tests import helpers
from tests.helpers import ToyModel, encoded, noise
from tests.programs import error_of
from trainer import colorizer, export, trained, workdir
from trainer.colorizer import FixedSizeColorizer
from trainer.models import extractor
from trainer.serving import Server
from trainer.trained import Trained


def test_what_a_killed_export_left_on_a_store_makes_way(tmp_path):
    left = tmp_path / "left"
    (left / "saved_model/variables").mkdir(parents=True)
    for name in ("export.json", f"model.keras.{'0' * 32}.tmp", "saved_model/variables/variables.index"):
        (left / name).write_text("")
    with pytest.raises(UserError, match=f"--output={left} holds .*; name a new directory"):
        export._make_way(str(left))  # a local folder has its name only when it is whole
    export._make_way(f"file://{left}")
    assert not left.exists()
    for name in ("other.json", "model.onnx", "saved_model/saved_model.pb"):  # not ours, perhaps not, and whole
        (left / name).parent.mkdir(parents=True, exist_ok=True)
        (left / name).write_text("")
        with pytest.raises(UserError, match=f"--output=file://{left} holds .*; name a new directory"):
            export._make_way(f"file://{left}")
        (left / name).unlink()


def test_a_left_over_is_known_however_often_its_deletion_is_killed(tmp_path, monkeypatch):
    left = tmp_path / "left"
    names = ("export.json", "model.keras", "saved_model/variables/variables.index")
    for name in names:
        (left / name).parent.mkdir(parents=True, exist_ok=True)
        (left / name).write_text("")
    remove, kills = own_files.remove, 0

    def remove_one(path):
        remove(path)
        if not path.endswith(export._LAST):  # which is not there
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(own_files, "remove", remove_one)
        while any((left / name).exists() for name in names):
            with pytest.raises(KeyboardInterrupt):
                export._make_way(f"file://{left}")
            kills += 1
    assert kills == len(names)
    export._make_way(f"file://{left}")
    assert not left.exists()


def test_an_export_that_another_one_takes_for_a_left_over_does_not_say_that_it_is_whole(tmp_path, monkeypatch):
    output = f"file://{tmp_path}/out"
    upload = own_files.upload

    def upload_and_lose(source, target):
        if target.endswith(export._LAST):
            export._make_way(output)  # as a second one that begins now does
            (tmp_path / "out/saved_model").mkdir(parents=True)  # without which a store does
        upload(source, target)

    monkeypatch.setattr(own_files, "upload", upload_and_lose)
    with (
        pytest.raises(UserError, match="another program has deleted export.json while others were written"),
        own_files.folder_aside(output, export.DESCRIPTION, export._LAST) as folder,
    ):
        for name in (export.DESCRIPTION, export.KERAS, export._LAST):
            own_files.make_folder(f"{folder}/{name}".rpartition("/")[0])
            own_files.write(f"{folder}/{name}", b"x")
    assert not (tmp_path / "out" / export._LAST).exists()


# What a program does that has an exported model, and nothing of this one.
ALONE = """
import sys
for name in {absent}:
    sys.modules[name] = None
import numpy as np
inputs = dict(np.load("inputs.npz", allow_pickle=True))
{use}
np.savez("outputs.npz", **outputs)
"""
SAVED_MODEL = """
import tensorflow as tf
signatures = tf.saved_model.load("exported/saved_model").signatures
files = tf.constant(list(inputs.pop("files")))
outputs = dict(enumerate(signatures["serving_default"](image_bytes=files)["png_bytes"].numpy()))
outputs = {f"file {number}": np.void(png) for number, png in outputs.items()}
for name, lightness in inputs.items():
    outputs[name] = signatures["lightness"](lightness=tf.constant(lightness))["rgb"].numpy()
"""
KERAS = """
import keras
outputs = {"ab": keras.saving.load_model("exported/model.keras").predict(inputs, verbose=0)}
"""
ONNX = """
import onnxruntime
session = onnxruntime.InferenceSession("exported/model.onnx")
outputs = {name: session.run(["rgb"], {"lightness": lightness})[0] for name, lightness in inputs.items()}
"""
OURS = ["pipeline", "trainer", "beam_jobs", "tensorflow_io", "cv2", "PIL"]
SIZES = [(1, 1), (3, 500), (500, 3), (640, 427), (224, 224), (1100, 900)]  # the last in strips


def call(run, output):
    return cli.run(export.main, ["export", f"--workdir={run}", f"--output={output}"])


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """A folder with an exported model."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "create", helpers.tiny_extractor)
        assert call(finished[0], folder / "exported") == 0
    return folder


def alone(folder, use, absent, **inputs):
    """What a program of its own makes of inputs."""
    np.savez(folder / "inputs.npz", **inputs)
    command = [sys.executable, "-I", "-c", ALONE.format(absent=absent, use=use)]
    subprocess.run(command, cwd=folder, check=True, timeout=600)
    return dict(np.load(folder / "outputs.npz"))


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


def grays(sizes):
    """Gray pictures of sizes, and their lightness as a batch of one."""
    pictures = [np.repeat(noise(*size)[..., :1], 3, axis=-1) for size in sizes]
    return pictures, [color.rgb_to_l(picture)[None, ..., None] for picture in pictures]


def test_saved_model_in_a_process_with_tensorflow_alone(exported, finished, tiny_extractor):
    own = colorizer.load(str(finished[0]))
    rgba = Image.fromarray(np.dstack([noise(80, 70), noise(80, 70, 1)[..., 0]]))
    files = [
        *(encoded(noise(*size), "PNG") for size in SIZES),
        encoded(noise(300, 400), "JPEG"),
        encoded(noise(300, 400)[..., 0], "JPEG"),
        encoded(rgba),
        encoded(rgba.convert("LA")),
    ]
    pictures, lightness = grays(SIZES)
    pair = np.concatenate([lightness[3], lightness[3][:, ::-1]])
    inputs = {"files": np.array(files, object), "pair": pair, **{str(n): each for n, each in enumerate(lightness)}}
    found = alone(exported, SAVED_MODEL, OURS, **inputs)
    for number, data in enumerate(files):
        picture = image.decode_picture(data)
        prepared = own.prepare(picture.on_white())
        result = image.decode_picture(found[f"file {number}"].tobytes())
        assert_close(result.rgb, own.join(picture.rgb, own.predict([prepared])[0]))
        np.testing.assert_array_equal(result.alpha, picture.alpha)
    for number, expected in enumerate(own.colorize(pictures)):
        assert_close(found[str(number)][0], expected)
    for result, expected in zip(found["pair"], own.colorize([pictures[3], pictures[3][::-1]]), strict=True):
        assert_close(result, expected)
        assert np.ptp(expected.astype(int), axis=-1).max() > 10  # not gray


def test_keras_in_a_process_with_keras_alone(exported, finished, tiny_extractor):
    own = colorizer.load(str(finished[0]))
    batch = [own.prepare(noise(*size)) for size in [(640, 427), (100, 90)]]
    inputs = {name: np.stack([getattr(each, name) for each in batch]) for name in ("l_224", "l_299")}
    found = alone(exported, KERAS, OURS, **inputs)
    np.testing.assert_allclose(found["ab"], np.stack(own.predict(batch)), atol=1e-5)


def test_onnx_in_a_process_without_tensorflow(exported, finished, tiny_extractor):
    pictures, lightness = grays(SIZES)
    found = alone(exported, ONNX, [*OURS, "tensorflow", "keras"], **{str(n): each for n, each in enumerate(lightness)})
    for number, expected in enumerate(colorizer.load(str(finished[0])).colorize(pictures)):
        assert_close(found[str(number)][0], expected)


def test_lightness_is_what_the_result_keeps(finished, tiny_extractor):
    """That between two levels of gray, too, and that out of range as the nearest in it."""
    run = trained.load(str(finished[0]))
    lightness = np.linspace(-5, 105, 60 * 80, dtype=np.float32).reshape(1, 60, 80, 1)
    server = Server(run.model, run.dataset.resize_mode)
    rgb = server.colorize_lightness(tf.constant(lightness))["rgb"].numpy()
    middle = (lightness[0, ..., 0] > 20) & (lightness[0, ..., 0] < 80)
    assert np.abs(color.rgb_to_l(rgb[0]) - lightness[0, ..., 0])[middle].max() < 0.6
    assert (rgb[lightness[..., 0] > 104] > 200).all()


@pytest.mark.parametrize(("mode", "forms"), [("pad", ["model.keras", "model.onnx"]), ("crop", ["model.keras"])])
def test_another_model_and_other_ways_to_make_squares(finished, config, tmp_path, monkeypatch, capsys, mode, forms):
    """A model that sees L alone; pictures stand between white margins or, where training cropped, are stretched."""
    settings, manifest = workdir.load(str(finished[0]))
    manifest = dataclasses.replace(manifest, resize_mode=ResizeMode(mode))
    model = ToyModel(config.model, 1, False)
    # Gentle: a level that another rounding of a tie gives the network must not be more than one in the result.
    model.network.set_weights([np.full((1, 1, 1, 2), 0.2), np.array([0.1, -0.2])])
    run = Trained(model, 1, settings, manifest)
    monkeypatch.setattr(trained, "load", lambda work_dir: run)
    if "model.onnx" not in forms:
        monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "out").mkdir()  # an empty one is as good as none
    assert call("run", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export.json", *forms, "saved_model"]
    message = "WARNING: model.onnx is left out: it needs tf2onnx and onnxruntime"
    assert (message in capsys.readouterr().err) == ("model.onnx" not in forms)
    lightness_to_rgb = tf.saved_model.load(tmp_path / "out/saved_model").signatures["lightness"]
    pictures, lightness = grays([(60, 200), (300, 7)])
    own = FixedSizeColorizer(run.model, manifest.resize_mode)
    for each, expected in zip(lightness, own.colorize(pictures), strict=True):
        assert_close(lightness_to_rgb(lightness=tf.constant(each))["rgb"].numpy()[0], expected)


def test_a_model_of_other_operations_than_keras_has_no_keras_file(finished, config, tmp_path, monkeypatch):
    monkeypatch.setattr(ToyModel, "ab", lambda self, outputs: tf.tanh(outputs))
    run = Trained(ToyModel(config.model, 1, False), 1, *workdir.load(str(finished[0])))
    with pytest.raises(export._LeftOut, match="model 'koalarization' is not of Keras's operations: .*KerasTensor"):
        export._write_keras(run, str(tmp_path / "model.keras"), None)


def test_what_is_written_is_described(exported, finished, tmp_path):
    described = json.loads((exported / "exported/export.json").read_text())
    assert described["step"] == finished[1].step
    assert sorted(described["forms"]) == ["model.keras", "model.onnx", "saved_model"]
    found = tf.saved_model.load(exported / "exported/saved_model").signatures
    for name, tensors in described["forms"]["saved_model"]["signatures"].items():
        assert [*found[name].structured_input_signature[1], *found[name].structured_outputs] == list(tensors)
    assert sorted(keras.saving.load_model(exported / "exported/model.keras").input) == ["l_224", "l_299"]


def test_a_remote_output(exported, tmp_path, monkeypatch):
    """The saved model is complete once its last file is there; a failure leaves nothing."""
    copied, upload = [], own_files.upload

    def export_to(output):
        with own_files.folder_aside(output, export.DESCRIPTION, export._LAST) as folder:
            shutil.copytree(exported / "exported", folder, dirs_exist_ok=True)

    def upload_or_fail(path, target):
        if target.endswith("full/saved_model/saved_model.pb"):
            raise UserError(f"{target} cannot be written: no space left")
        copied.append(target)
        upload(path, target)

    monkeypatch.setattr(own_files, "upload", upload_or_fail)
    export_to(f"file://{tmp_path}/out")
    assert copied[-1] == f"file://{tmp_path}/out/saved_model/saved_model.pb"
    assert files_below(tmp_path / "out") == files_below(exported / "exported")
    with pytest.raises(UserError, match="saved_model.pb cannot be written: no space left"):
        export_to(f"file://{tmp_path}/full")
    assert not (tmp_path / "full").exists()


def files_below(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_that_differs_is_not_exported(finished, tiny_extractor, tmp_path, monkeypatch, capsys):
    join_rows = export.serving._join_rows
    monkeypatch.setattr(export.serving, "_join_rows", lambda lightness, *rest: join_rows(lightness + 2.0, *rest))
    assert call(finished[0], tmp_path / "out") == 1
    assert "saved_model differs from trainer.colorize by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--output=x"], 2, "--workdir is missing"),
        (["--workdir=x"], 2, "--output is missing"),
        (["--workdir=absent", "--output=x"], 1, "holds no run"),
        (["--workdir=x", "--output=y", "z"], 2, "unexpected argument z"),
        (["--workdir=RUN", "--output=FOLDER"], 1, "holds config.json; name a new directory"),
        (["--workdir=RUN", "--output=FOLDER/config.json"], 1, "name a new directory"),
    ],
)
def test_mistakes_are_one_line(finished, tmp_path, capsys, arguments, status, message):
    (tmp_path / "config.json").write_text("{}")
    places = [each.replace("RUN", str(finished[0])).replace("FOLDER", str(tmp_path)) for each in arguments]
    assert cli.run(export.main, ["export", *places]) == status
    assert message in error_of(capsys)
