import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from pipeline import cli, color, image, reader, tensors
from tests.helpers import Terminal, encoded, noise, train
from trainer import colorize
from trainer.colorizer import Colorizer


@pytest.fixture
def run(tiny_extractor, finished):
    return finished[0]


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
    (result,) = Colorizer.load(str(run)).colorize([truth])
    assert np.abs(color.rgb_to_l(result) - color.rgb_to_l(truth)).mean() < 0.5


def test_batches_and_single_pictures_agree(run):
    colorizer = Colorizer.load(str(run))
    pictures = [noise(30, 40, 1), noise(50, 20, 2), noise(224, 224, 3)]
    together = list(colorizer.colorize(pictures))
    for picture, result in zip(pictures, together, strict=True):
        (alone,) = colorizer.colorize([picture])
        assert np.abs(alone.astype(int) - result).max() <= 1


def test_colors_are_those_that_training_saw_predicted(run, finished, pictures):
    """The colorizer gives the ab of a picture of the network's own size just as the model does."""
    picture = image.fit(image.decode((pictures / "held_out/coffee.png").read_bytes()), 224, image.ResizeMode.STRETCH)
    colorizer = Colorizer.load(str(run))
    (result,) = colorizer.colorize([picture])
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
    (result,) = Colorizer.load(str(tmp_path / "run")).colorize([wide])
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
    assert "3 of 4 pictures could not be colorized" in message
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


def test_progress_bar_on_a_terminal(run, tmp_path, monkeypatch):
    (tmp_path / "one.jpg").write_bytes(encoded(noise(20, 20), "JPEG"))
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    assert call(run, tmp_path / "out", tmp_path / "one.jpg") == 0
    assert "colorize: 100%" in terminal.getvalue()
    assert "1/1" in terminal.getvalue()


class TestMistakes:
    def error(self, capsys, status, *argv):
        assert cli.run(colorize.main, ["colorize", *map(str, argv)]) == status
        captured = capsys.readouterr().err
        assert "Traceback" not in captured
        (line,) = [line for line in captured.splitlines() if line.startswith("error: ")]
        return line

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

    def test_two_pictures_of_one_name(self, capsys, tmp_path):
        argv = ("--workdir=x", f"--output={tmp_path}", "a/one.png", "b/one.jpg")
        assert "a/one.png and b/one.jpg would both be written to" in self.error(capsys, 1, *argv)

    def test_a_picture_that_its_result_would_overwrite(self, capsys, tmp_path):
        argv = ("--workdir=x", f"--output={tmp_path}", f"{tmp_path}/one.png")
        assert "would be overwritten by its own result" in self.error(capsys, 1, *argv)

    def test_output_that_cannot_be_made(self, capsys, run, tmp_path):
        (tmp_path / "file").write_text("")
        argv = (f"--workdir={run}", f"--output={tmp_path}/file/out", "a.png")
        assert "cannot be created" in self.error(capsys, 1, *argv)
