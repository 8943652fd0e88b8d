import tarfile

import numpy as np
from PIL import Image

from tools import photographs, sheet


def test_the_same_archives_each_time_in_the_layouts_of_the_originals(pictures, tmp_path):
    photographs.write(str(tmp_path))
    for name in ("val_256.tar", "ILSVRC2012_img_train.tar"):
        assert (tmp_path / "archives" / name).read_bytes() == (pictures / "archives" / name).read_bytes()
    with tarfile.open(tmp_path / "archives/val_256.tar") as archive:
        assert archive.getnames()[0] == "val_256/Places365_val_00000001.jpg"
        assert Image.open(archive.extractfile(archive.getnames()[0])).size == (256, 256)
    with tarfile.open(tmp_path / "archives/ILSVRC2012_img_train.tar") as archive:
        assert len(archive.getnames()) == 8
        assert all(name.startswith("n0") and name.endswith(".tar") for name in archive.getnames())


def test_nothing_of_what_is_held_out_is_trained_on():
    """Each pixel of the picture has a color of its own, so that a shared one would show."""
    numbers = np.arange(120 * 90).reshape(120, 90)
    picture = np.stack([numbers // 256, numbers % 256, numbers * 0], axis=-1).astype(np.uint8)
    cuts, hidden = photographs.cut(picture, np.random.default_rng(0))
    secret = {tuple(pixel) for pixel in hidden.reshape(-1, 3)}
    assert len(secret) == 40 * 30
    shown = {tuple(pixel) for cut in cuts for pixel in cut.reshape(-1, 3)}
    assert len(cuts) == 12
    assert not secret & shown


def test_sheet_has_a_row_for_each_picture_gray_predicted_truth():
    red, blue = np.full((50, 100, 3), [200, 0, 0], np.uint8), np.full((50, 100, 3), [0, 0, 200], np.uint8)
    drawn = np.asarray(sheet.draw([("one", red, blue), ("two", blue, red)]))
    assert drawn.shape == (2 * 252, 3 * 232 + 8, 3)
    middle = [drawn[20 + 112, 8 + column * 232 + 112].tolist() for column in range(3)]
    assert len(set(middle[0])) == 1
    assert middle[1:] == [[0, 0, 200], [200, 0, 0]]


def test_gray_keeps_the_lightness():
    gray = sheet.gray(np.array([[[255, 0, 0], [255, 255, 255]]], np.uint8))
    assert gray[0, 0].tolist() == [127, 127, 127]  # L = 53.24
    assert gray[0, 1].tolist() == [255, 255, 255]
