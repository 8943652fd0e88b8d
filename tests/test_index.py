import gzip
import os
import shutil

import pytest

from beam_jobs import index, sources
from beam_jobs.sources import parse_source
from pipeline.errors import UserError


@pytest.fixture(params=["places365:val_256.tar", "imagenet:ILSVRC2012_img_train.tar"])
def source(request, pictures, tmp_path):
    kind, name = request.param.split(":")
    shutil.copy(pictures / "archives" / name, tmp_path / name)
    return parse_source(f"{kind}:{tmp_path / name}")


def listed(source, folder):
    return [ref for part in sources.parts(source) for ref in index.list_part(part, str(folder))]


def test_a_second_listing_reads_the_index_alone(source, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    folder.mkdir()
    expected = list(sources.list_pictures(source))
    assert listed(source, folder) == expected
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(sources, "list_part", lambda part: 1 / 0)
        assert listed(source, folder) == expected
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_an_archive_that_was_written_to_is_listed_anew(source, tmp_path):
    folder = tmp_path / "index"
    folder.mkdir()
    listed(source, folder)
    before = len(list(folder.iterdir()))
    os.utime(source.path, (1, 1))
    listed(source, folder)
    assert len(list(folder.iterdir())) == 2 * before


def test_a_listing_that_stops_leaves_no_index(source, tmp_path):
    folder = tmp_path / "index"
    folder.mkdir()
    first = next(sources.parts(source))
    listing = index.list_part(first, str(folder))
    next(listing)
    listing.close()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: b"x" + data, lambda data: gzip.compress(b"[]")]
)
def test_a_damaged_index_is_one_line(source, tmp_path, damage):
    folder = tmp_path / "index"
    folder.mkdir()
    first = next(sources.parts(source))
    list(index.list_part(first, str(folder)))
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f"index {path} of {source} is damaged: .*; delete it"):
        list(index.list_part(first, str(folder)))


def test_every_flipped_bit_is_found_or_harmless(source, tmp_path):
    first = next(sources.parts(source))
    expected = list(index.list_part(first, str(tmp_path)))
    (path,) = tmp_path.glob("*.jsonl.gz")
    data = path.read_bytes()
    found = 0
    for bit in range(0, 8 * len(data), 3):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            listed = list(index.list_part(first, str(tmp_path)))
        except UserError:
            found += 1
        else:
            assert listed == expected  # a few bits of the header have no meaning
    assert found > 8 * len(data) / 3 * 0.9


def test_folders_are_listed_each_time(pictures, tmp_path):
    (part,) = sources.parts(parse_source(f"images:{pictures}/held_out"))
    assert len(list(index.list_part(part, str(tmp_path / "absent")))) == 8
