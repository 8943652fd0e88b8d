import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline import cli, color, image, reader, tensors
from pipeline.errors import UserError
from tests.helpers import Terminal, encoded, noise, train
from tests.programs import error_of
from trainer import colorize, colorizer, pictures
from trainer.colorizer import FixedSizeColorizer


def call(run, output, *pictures):
    return cli.run(colorize.main, ["colorize", f"--workdir={run}", f"--output={output}", *map(str, pictures)])


def test_any_size_gray_or_color(run, tmp_path):
    """The result has the picture's size and lightness, and color of its own."""
    sizes = [(1, 1), (3, 700), (256, 256), (481, 333)]
    names = []
    for height, width in sizes:
        names.append(tmp_path / f"{height}x{width}.jpg")
        names[-1].write_bytes(encoded(noise(height, width), "JPEG"))
    gray = tmp_path / "gray.png"
    gray.write_bytes(encoded(np.full((40, 50), 119, np.uint8)))
    assert call(run, tmp_path / "out", *names, gray) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*(f"{name.stem}.png" for name in names), "gray.png"]
    )
    for name, (height, width) in zip(names, sizes, strict=True):
        assert image.decode((tmp_path / f"out/{name.stem}.png").read_bytes()).shape == (height, width, 3)
    result = image.decode((tmp_path / "out/gray.png").read_bytes())
    assert result.shape == (40, 50, 3)
    assert np.abs(color.rgb_to_l(result) - 50).max() < 1  # 119 is L = 50
    assert np.ptp(result.astype(int), axis=-1).max() > 0  # not gray any more


def test_lightness_is_the_pictures_own(run):
    truth = np.repeat(noise(64, 48)[..., :1] // 4 + 90, 3, axis=-1)  # middle grays: few colors fall out of sRGB
    (result,) = colorizer.load(str(run)).colorize([truth])
    assert np.abs(color.rgb_to_l(result) - color.rgb_to_l(truth)).mean() < 0.5


def test_batches_and_single_pictures_agree(run):
    own = colorizer.load(str(run))
    pictures = [noise(30, 40, 1), noise(50, 20, 2), noise(224, 224, 3)]
    together = list(own.colorize(pictures))
    for picture, result in zip(pictures, together, strict=True):
        (alone,) = own.colorize([picture])
        assert np.abs(alone.astype(int) - result).max() <= 1


def test_colors_are_those_that_training_saw_predicted(run, finished, pictures):
    """The colorizer gives the ab of a picture of the network's own size just as the model does."""
    picture = image.fit(image.decode((pictures / "held_out/coffee.png").read_bytes()), 224, image.ResizeMode.STRETCH)
    own = colorizer.load(str(run))
    (result,) = own.colorize([picture])
    _, state = finished
    inputs = tensors.from_image(picture, image.ResizeMode.STRETCH)
    batch = {name: tf.constant(values[None]) for name, values in inputs.items()}
    ab = np.asarray(state.model.ab(state.model.outputs(batch, training=False)))[0]
    lab = np.concatenate([color.rgb_to_l(picture)[..., None], color.denormalize_ab(ab)], axis=-1)
    assert np.abs(result.astype(int) - color.lab_to_rgb(lab)).max() <= 1


@pytest.mark.parametrize("mode", ["pad", "crop"])
def test_padding_is_cut_away_and_what_cropping_left_out_gets_color(config, toy_model, make_dataset, tmp_path, mode):
    """A model that sees L alone must color a wide picture evenly to its edges."""
    folder = make_dataset(tmp_path / "data", "--config.dataset.layout=compact", f"--config.dataset.resize_mode={mode}")
    config.model.name = "toy"
    train(config, reader.open_dataset(str(folder)), tmp_path / "run")
    wide = np.full((60, 200, 3), 60, np.uint8)
    (result,) = colorizer.load(str(tmp_path / "run")).colorize([wide])
    assert result.shape == wide.shape
    assert np.ptp(result.reshape(-1, 3), axis=0).max() <= 1  # one color everywhere: no white border showed


def test_bad_pictures_are_named_and_the_rest_is_done(run, tmp_path, capsys):
    good, text = tmp_path / "good.png", tmp_path / "text.jpg"
    good.write_bytes(encoded(noise(20, 20)))
    text.write_text("no picture")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:500])
    assert call(run, tmp_path / "out", text, good, cut, tmp_path / "absent.png") == 1
    message = capsys.readouterr().err
    assert "3 of 4 files could not be colorized" in message
    assert f"{text} (not_an_image" in message
    assert f"{cut} (truncated" in message
    assert "absent.png (No such file or directory)" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


def test_results_of_its_own_are_replaced_and_no_other_file(run, tmp_path, capsys):
    picture, result = tmp_path / "picture.jpg", tmp_path / "out/picture.png"
    picture.write_bytes(encoded(noise(20, 20), "JPEG"))
    assert call(run, tmp_path / "out", picture) == 0
    first = result.read_bytes()
    picture.write_bytes(encoded(noise(20, 20, 1), "JPEG"))
    assert call(run, tmp_path / "out", picture) == 0
    assert result.read_bytes() != first
    for other in (encoded(noise(5, 5)), b"no picture"):
        result.write_bytes(other)
        assert call(run, tmp_path / "out", picture) == 1
        assert "picture.png would be overwritten, and was not written by this program" in capsys.readouterr().err
        assert result.read_bytes() == other


def test_a_pipe_does_not_block_and_a_name_that_cannot_be_written_does_not_stop_the_rest(run, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.png")
    long, good = tmp_path / f"{'x' * 250}.jpg", tmp_path / "good.jpg"  # 250 and ".png" and what is written aside
    for picture in (long, good):
        picture.write_bytes(encoded(noise(20, 20), "JPEG"))
    assert call(run, tmp_path / "out", tmp_path / "pipe.png", long, good) == 1
    message = capsys.readouterr().err
    assert f"{tmp_path}/pipe.png (not a file)" in message
    assert "xxx.png cannot be written" in message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]


def test_folders_and_patterns_keep_their_order_below_the_output(run, tmp_path):
    for name in ("one.jpg", "a/two.webp", "a/b/three.tif"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True, parents=True)
        suffix = name.split(".")[1].upper().replace("JPG", "JPEG").replace("TIF", "TIFF")
        (tmp_path / "in" / name).write_bytes(encoded(noise(20, 30), suffix))
    assert call(run, tmp_path / "out", tmp_path / "in") == 0
    assert written(tmp_path / "out") == ["a/b/three.png", "a/two.png", "one.png"]
    assert call(run, f"file://{tmp_path}/remote", f"file://{tmp_path}/in/**.[wt]*") == 0
    assert written(tmp_path / "remote") == ["a/b/three.png", "a/two.png"]


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_results_do_not_become_pictures(run, tmp_path, capsys):
    (tmp_path / "one.jpg").write_bytes(encoded(noise(20, 30), "JPEG"))
    assert call(run, tmp_path / "out", tmp_path) == 1
    assert f"--output={tmp_path}/out lies within {tmp_path}" in capsys.readouterr().err
    with pytest.raises(UserError, match="--output=gs://bucket/photos/out lies within gs://bucket/photos/; name"):
        colorize._tasks("gs://bucket/photos/out", ["gs://bucket/photos/"])
    assert call(run, tmp_path, tmp_path / "*.jpg") == 0
    assert call(run, tmp_path, tmp_path / "*.???") == 1  # the result would be read, and written
    assert f"{tmp_path}/one.jpg and {tmp_path}/one.png would both be written to" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_stays(run, tmp_path, mode):
    """What shows through in part or not at all has its own lightness still; the model sees it on white."""
    gray = np.repeat(noise(40, 50)[..., :1] // 4 + 90, 3, axis=-1)
    alpha = np.repeat(np.linspace(0, 255, 50, dtype=np.uint8)[None], 40, axis=0)
    picture = tmp_path / "picture.png"
    picture.write_bytes(encoded(Image.fromarray(np.dstack([gray, alpha])).convert(mode)))
    assert call(run, tmp_path / "out", picture) == 0
    result = image.decode_picture((tmp_path / "out/picture.png").read_bytes())
    np.testing.assert_array_equal(result.alpha, alpha)
    assert np.abs(color.rgb_to_l(result.rgb) - color.rgb_to_l(gray)).mean() < 0.5
    (expected,) = colorizer.load(str(run)).colorize([image.decode(picture.read_bytes())])
    opaque = alpha == 255
    assert np.abs(result.rgb[opaque].astype(int) - expected[opaque]).max() <= 1


def test_many_pictures_come_out_as_each_alone(run, tmp_path, monkeypatch):
    """Batches are full, or end before a picture that would be too much for memory."""
    monkeypatch.setattr(pictures, "PIXELS", 3000)
    sizes = [(20, 30)] * 6 + [(60, 70), (1, 1)] + [(30, 20)] * 5
    paths = [tmp_path / f"{number}.png" for number in range(len(sizes))]
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        path.write_bytes(encoded(noise(*size, number)))
    batches = []
    predict = FixedSizeColorizer.predict
    monkeypatch.setattr(
        FixedSizeColorizer, "predict", lambda self, batch: batches.append(len(batch)) or predict(self, batch)
    )
    assert call(run, tmp_path / "out", *paths) == 0
    assert [count for count in batches if count] == [5, 1, 1, 5, 1]
    own = colorizer.load(str(run))
    for path in paths:
        (alone,) = own.colorize([image.decode(path.read_bytes())])
        result = image.decode((tmp_path / f"out/{path.name}").read_bytes())
        assert np.abs(result.astype(int) - alone).max() <= 1


def test_pictures_that_stay_gray_are_named(run, tmp_path, monkeypatch, capsys):
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path in paths:
        path.write_bytes(encoded(noise(20, 30)))
    predict = FixedSizeColorizer.predict

    def second_is_gray(self, batch):
        first, second = predict(self, batch)
        return [first, 0 * second]

    monkeypatch.setattr(FixedSizeColorizer, "predict", second_is_gray)
    assert call(run, tmp_path / "out", *paths) == 0
    assert f"the model knew no color for 1 of them, which are gray: {tmp_path}/two.png" in capsys.readouterr().err


def test_saturation_and_native_size_are_passed_on(run, tmp_path, monkeypatch):
    picture = tmp_path / "picture.png"
    picture.write_bytes(encoded(np.repeat(noise(90, 120)[..., :1] // 4 + 90, 3, axis=-1)))
    (expected,) = colorizer.load(str(run), 3.0, native_size=True).colorize([image.decode(picture.read_bytes())])
    assert call(run, tmp_path / "out", "--saturation=3", "--native_size", picture) == 0
    np.testing.assert_array_equal(image.decode((tmp_path / "out/picture.png").read_bytes()), expected)


def test_progress_bar_on_a_terminal(run, tmp_path, monkeypatch):
    (tmp_path / "one.jpg").write_bytes(encoded(noise(20, 20), "JPEG"))
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert call(run, tmp_path / "out", tmp_path / "one.jpg") == 0
    assert "colorize: 100%" in terminal.getvalue()
    assert "1/1" in terminal.getvalue()


class TestMistakes:
    def error(self, capsys, status, *argv):
        assert cli.run(colorize.main, ["colorize", *map(str, argv)]) == status
        return error_of(capsys)

    def test_missing_arguments(self, capsys, tmp_path):
        assert "--workdir is missing" in self.error(capsys, 2, "a.png")
        assert "--output is missing" in self.error(capsys, 2, "--workdir=x", "a.png")
        assert "no picture is named" in self.error(capsys, 2, "--workdir=x", "--output=y")
        assert "Unknown command line flag 'wokdir'" in self.error(capsys, 2, "--wokdir=x", "--output=y", "a.png")

    def test_no_run(self, capsys, tmp_path):
        argv = (f"--workdir={tmp_path}", f"--output={tmp_path}/out", "a.png")
        assert "holds no run: config.json cannot be read" in self.error(capsys, 1, *argv)

    def test_no_checkpoint_yet(self, capsys, finished_copy, tmp_path):
        shutil.rmtree(finished_copy / "checkpoints")
        argv = (f"--workdir={finished_copy}", f"--output={tmp_path}/out", "a.png")
        assert "holds no checkpoint yet" in self.error(capsys, 1, *argv)

    @pytest.mark.parametrize("value", ["0", "-1", "11", "nan"])
    def test_saturation_out_of_range(self, capsys, value):
        argv = ("--workdir=x", "--output=y", f"--saturation={value}", "a.png")
        assert f"--saturation={value}; choose above 0, at most 10" in self.error(capsys, 2, *argv)

    def test_a_pattern_without_pictures(self, capsys, tmp_path):
        argv = ("--workdir=x", f"--output={tmp_path}/out", f"{tmp_path}/*.jpg")
        assert f"{tmp_path}/*.jpg holds no file" in self.error(capsys, 1, *argv)

    def test_two_pictures_of_one_name(self, capsys, tmp_path):
        argv = ("--workdir=x", f"--output={tmp_path}", "a/one.png", "b/one.jpg")
        assert "a/one.png and b/one.jpg would both be written to" in self.error(capsys, 1, *argv)

    def test_a_picture_that_its_result_would_overwrite(self, capsys, tmp_path):
        argv = ("--workdir=x", f"--output={tmp_path}", f"{tmp_path}/one.png")
        assert f"one.png would be overwritten by the result of {tmp_path}/one.png" in self.error(capsys, 1, *argv)

    def test_output_that_cannot_be_made(self, capsys, run, tmp_path):
        (tmp_path / "file").write_text("")
        argv = (f"--workdir={run}", f"--output={tmp_path}/file/out", "a.png")
        assert "cannot be created" in self.error(capsys, 1, *argv)
