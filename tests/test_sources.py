import os
import shutil
import tarfile

import pytest
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

from beam_jobs import sources, storage
from beam_jobs.read_ahead import read_ahead
from beam_jobs.sources import Source
from pipeline.errors import UsageError, UserError
from tests.helpers import encoded, noise

PICTURE = encoded(noise(8, 8))


def refs(kind, path):
    return sorted(sources.list_pictures(sources.parse_source(f"{kind}:{path}")))


def tree(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PICTURE)
    return root


def pack(root, path):
    with tarfile.open(path, "w") as archive:
        for child in sorted(root.iterdir()):
            archive.add(child, child.name)
    return path


class Bucket(LocalFileSystem):
    """A remote store of 5,000 pictures that counts what it is asked for."""

    listed = 0

    @classmethod
    def scheme(cls):
        return "bucket"

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        for number in range(5000):
            Bucket.listed += 1
            yield FileMetadata(f"bucket://pictures/val_256/Places365_val_{number:08d}.jpg", 10, 0.0)


def test_a_look_at_a_bucket_does_not_list_all_of_it():
    source = sources.parse_source("places365:bucket://pictures")
    Bucket.listed = 0
    sources.check_readable(source)
    assert Bucket.listed <= 1001
    paths = [ref.path.decode() for ref in sources.list_pictures(source)]
    assert paths == [f"bucket://pictures/val_256/Places365_val_{number:08d}.jpg" for number in range(5000)]


PLACES = ("data_256/a/airfield/00000001.jpg", "data_256/a/apartment_building/outdoor/00000001.jpg")


def test_places_train_from_archive_tree_and_part_of_it(tmp_path):
    root = tree(tmp_path / "places", *PLACES, "data_256/README.txt")
    expected = [(f"places365/{PLACES[0]}", "/a/airfield"), (f"places365/{PLACES[1]}", "/a/apartment_building/outdoor")]
    for path in (root, root / "data_256", pack(root, tmp_path / "train_256_places365standard.tar")):
        assert [(ref.key, ref.label) for ref in refs("places365", path)] == expected


def test_places_validation_has_no_labels(pictures):
    found = refs("places365", pictures / "archives/val_256.tar")
    assert found[0].key == "places365/val_256/Places365_val_00000001.jpg"
    assert {ref.label for ref in found} == {""}
    assert len(found) == 48


def test_imagenet_train_from_nested_archive_and_tree(tmp_path, pictures):
    archive = pictures / "archives/ILSVRC2012_img_train.tar"
    nested = refs("imagenet", archive)
    assert nested[0].key == "imagenet/n02124075_1.JPEG"
    assert nested[0].label == "n02124075"
    assert len(nested) == 48
    with tarfile.open(archive) as outer:
        for inner in outer.getmembers():
            with tarfile.open(fileobj=outer.extractfile(inner)) as members:
                members.extractall(tmp_path / "train" / inner.name.removesuffix(".tar"), filter="data")
    extracted = refs("imagenet", tmp_path)
    assert [ref[:3] for ref in extracted] == [ref[:3] for ref in nested]
    assert [data for _, data in read_ahead(extracted)] == [data for _, data in read_ahead(nested)]


def test_an_archive_of_archives_is_divided_and_a_flat_one_is_not(pictures):
    nested = sources.parse_source(f"imagenet:{pictures}/archives/ILSVRC2012_img_train.tar")
    parts = list(sources.parts(nested))
    assert len(parts) == 1 + 8
    assert [len(list(sources.list_part(part))) for part in parts] == [6] * 8 + [0]
    flat = sources.parse_source(f"places365:{pictures}/archives/val_256.tar")
    (part,) = sources.parts(flat)
    assert len(list(sources.list_part(part))) == 48


def test_an_archive_of_both_is_listed_whole(tmp_path, pictures):
    folder = tmp_path / "both"
    folder.mkdir()
    shutil.copy(pictures / "archives/val_256.tar", folder / "val_256.tar")
    (folder / "z.jpg").write_bytes(PICTURE)
    for names in (("val_256.tar", "z.jpg"), ("z.jpg", "val_256.tar")):
        with tarfile.open(tmp_path / "both.tar", "w") as archive:
            for name in names:
                archive.add(folder / name, name)
        assert len(refs("images", tmp_path / "both.tar")) == 48 + 1


def test_imagenet_validation_has_no_labels(tmp_path):
    root = tree(tmp_path / "val", "ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG")
    for path in (root, pack(root, tmp_path / "ILSVRC2012_img_val.tar")):
        assert [(ref.key, ref.label) for ref in refs("imagenet", path)] == [
            ("imagenet/ILSVRC2012_val_00000001.JPEG", ""),
            ("imagenet/ILSVRC2012_val_00000002.JPEG", ""),
        ]


def test_images_from_folder_pattern_and_file(tmp_path):
    root = tree(tmp_path / "photos", "a.jpg", "b.png", "2019/c.jpg", ".hidden", ".git/d.jpg", "odd [1]/e.jpg")
    assert [ref.key for ref in refs("images", root)] == [
        "images/photos/2019/c.jpg", "images/photos/a.jpg", "images/photos/b.png", "images/photos/odd [1]/e.jpg",
    ]  # fmt: skip
    assert [ref.key for ref in refs("images", f"{root}/*.jpg")] == ["images/photos/a.jpg"]
    assert [ref.key for ref in refs("images", f"{root}/**.jpg")] == [
        "images/photos/2019/c.jpg", "images/photos/a.jpg", "images/photos/odd [1]/e.jpg",
    ]  # fmt: skip
    assert [ref.key for ref in refs("images", root / "b.png")] == ["images/photos/b.png"]


def test_keys_do_not_change_when_a_folder_moves(tmp_path):
    root = tree(tmp_path / "here" / "photos", "a.jpg", "x/b.jpg")
    before = [ref.key for ref in refs("images", root)]
    shutil.move(root, tmp_path / "photos")
    assert [ref.key for ref in refs("images", tmp_path / "photos")] == before


@pytest.mark.parametrize("text", ["", "places365", "places365:", "flowers:/x", "/x/y.tar"])
def test_what_is_no_source_is_refused(text):
    with pytest.raises(UsageError, match="is not KIND:PATH with KIND one of places365, imagenet, images"):
        sources.parse_source(text)


def test_local_paths_become_absolute_and_remote_ones_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources.parse_source("images:photos") == Source("images", str(tmp_path / "photos"))
    monkeypatch.setattr(storage.FileSystems, "get_filesystem", lambda path: None)  # as with the client for it installed
    assert sources.parse_source("images:hdfs://host/photos").path == "hdfs://host/photos"


def test_bad_sources_are_one_line(tmp_path):
    (tmp_path / "broken.tar").write_bytes(b"no archive")
    empty = tmp_path / "empty"
    empty.mkdir()
    photos = tree(tmp_path / "photos", "a.jpg")
    pack(photos, tmp_path / "photos.tar")
    for kind, path, message in (
        ("images", tmp_path / "absent", "matches nothing; check the path"),
        ("images", empty, "matches nothing"),
        ("images", f"{photos}/*.gif", "matches nothing"),
        ("places365", tmp_path / "absent.tar", "cannot be read: .*No such file"),
        ("places365", tmp_path / "broken.tar", "is not a complete, uncompressed tar archive"),
        ("places365", photos, "holds 1 files but none is a picture of 'places365'"),
        ("imagenet", tmp_path / "photos.tar", "holds 1 files but none is a picture of 'imagenet'"),
    ):
        source = sources.parse_source(f"{kind}:{path}")
        with pytest.raises(UserError, match=message) as caught:
            sources.check_readable(source)
        assert str(source) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_name_that_is_not_utf_8_is_escaped(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(PICTURE)
    (ref,) = refs("images", tmp_path)
    assert ref.key == f"images/{tmp_path.name}/caf\\udce9.jpg"
    assert list(read_ahead([ref])) == [(ref, PICTURE)]


def test_links_to_folders_are_followed_once(tmp_path):
    root = tree(tmp_path / "photos", "a.jpg")
    tree(tmp_path / "elsewhere", "b.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    assert [ref.key for ref in refs("images", root)] == ["images/photos/a.jpg", "images/photos/linked/b.jpg"]


def test_sources_within_each_other_are_refused(tmp_path):
    whole, part, other = (Source("images", path) for path in ("/x/photos", "/x/photos/2019", "/x/photos2"))
    sources.check_disjoint([whole, other])
    for inputs in ([whole, part], [part, whole], [whole, whole]):
        with pytest.raises(UsageError, match="lies within --source=images:/x/photos; name only one"):
            sources.check_disjoint(inputs)


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    root = tree(tmp_path / "odd [1]", "e.jpg")
    assert [ref.key for ref in refs("images", root)] == ["images/odd [1]/e.jpg"]


def test_pipes_are_no_pictures(tmp_path):
    (tmp_path / "1.png").write_bytes(b"content")
    os.mkfifo(tmp_path / "2.png")
    assert len(refs("images", tmp_path)) == len(refs("images", f"{tmp_path}/*.png")) == 1
    with pytest.raises(UserError, match="matches nothing"):
        sources.check_readable(Source("images", f"{tmp_path}/2.png"))


def test_a_broken_link_is_listed_so_that_it_is_accounted_for(tmp_path):
    root = tree(tmp_path / "photos", "a.jpg")
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert [ref.key for ref in refs("images", root)] == ["images/photos/a.jpg", "images/photos/gone.jpg"]


def test_names_that_begin_with_a_dot_are_hidden_everywhere(tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        for name in (".hidden.jpg", "a/._b.jpg", ".git/c.jpg", "a/../d.jpg", "./e.jpg", "f.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    assert [ref.key for ref in sources.list_pictures(sources.parse_source(f"images:{tmp_path}/photos.tar"))] == [
        "images/a/../d.jpg", "images/./e.jpg", "images/f.jpg"
    ]  # fmt: skip


def test_a_pipe_in_the_place_of_an_archive_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "photos.tar")
    with pytest.raises(UserError, match="photos.tar cannot be read: it is no file"):
        list(sources.list_pictures(sources.parse_source(f"images:{tmp_path}/photos.tar")))
