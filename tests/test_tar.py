import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_jobs import tar

FILES = {"a/1.jpg": b"first", "b/2.jpg": b"", "c/" + "long" * 60 + ".jpg": b"x" * 5000}


def archive(files, tar_format=tarfile.GNU_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as file:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def contents(data):
    return {name: data[start : start + length] for name, start, length in tar.members(io.BytesIO(data), 0, len(data))}


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_byte_ranges(tar_format):
    files = {name: content for name, content in FILES.items() if tar_format != tarfile.USTAR_FORMAT or len(name) < 100}
    assert contents(archive(files, tar_format)) == files


def test_members_of_archives_within_archives():
    inner = archive({"n01440764_1.JPEG": b"tench", "n01440764_2.JPEG": b"another"})
    data = archive({"n01440764.tar": inner, "n01443537.tar": archive({"n01443537_1.JPEG": b"goldfish"})})
    outer = list(tar.members(io.BytesIO(data), 0, len(data)))
    assert [(member.name, member.is_archive) for member in outer] == [("n01440764.tar", True), ("n01443537.tar", True)]
    found = {
        name: data[start : start + length]
        for archive_ in outer
        for name, start, length in tar.members(io.BytesIO(data), archive_.offset, archive_.length)
    }
    assert found == {"n01440764_1.JPEG": b"tench", "n01440764_2.JPEG": b"another", "n01443537_1.JPEG": b"goldfish"}


def test_empty_archive():
    assert contents(archive({})) == {}


@pytest.mark.parametrize("data", [b"", b"hello" * 1000, b"\x1f\x8b" + bytes(1000)])
def test_what_is_no_archive_is_refused(data):
    with pytest.raises(tarfile.TarError):
        contents(data)


@pytest.mark.parametrize("size", [-1, -512, 2**40, 2**70])
def test_a_header_that_lies_of_its_size_is_refused(size):
    data = bytearray(archive({f"{number}.jpg": b"content" for number in range(3)}))
    start = data.index(b"1.jpg")
    header = data[start : start + 512]
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[start : start + 512] = header
    with pytest.raises((tarfile.TarError, OverflowError)):
        contents(bytes(data))


@settings(deadline=None)
@given(st.integers(0, 12_000))
def test_an_archive_cut_short_is_refused_wherever_it_is_cut(cut):
    data = archive(FILES)
    end = data.rindex(b"x") + 1
    end += -end % 512 + 512  # the first block of zeros: what follows it is filling
    if cut < end:
        with pytest.raises(tarfile.TarError):
            contents(data[:cut])
    else:
        assert contents(data[:cut]) == FILES


def test_a_damaged_header_is_not_taken_for_the_end():
    data = bytearray(archive({f"{number}.jpg": b"content" for number in range(5)}))
    header = data.index(b"3.jpg")
    data[header + 150] ^= 0xFF  # of the checksum
    with pytest.raises(tarfile.TarError, match="no member and no end"):
        contents(bytes(data))


def test_listing_keeps_no_members():
    data = archive({f"{number}.jpg": b"" for number in range(300)})
    file = io.BytesIO(data)
    opened = []
    original = tarfile.open

    def spy(*args, **kwargs):
        opened.append(original(*args, **kwargs))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tarfile, "open", spy)
        for _ in tar.members(file, 0, len(data)):
            assert len(opened[0].members) <= 1


@pytest.mark.parametrize("hole", [b"", b"more"])
def test_a_hole_is_not_taken_for_the_end(hole):
    """As an unfinished download leaves in a file of the final size."""
    data = archive({f"{number}.jpg": b"content" * 100 for number in range(10)})
    half = len(data) // 2 // 512 * 512
    filled = data[:half] + bytes(5 << 20) + hole
    with pytest.raises(tarfile.TarError, match="it ends at byte .* before the end of the file"):
        contents(filled)


def test_padding_of_large_records_is_no_hole():
    data = archive(FILES)
    assert contents(data + bytes((4 << 20) - len(data))) == FILES  # as of tar -b 8192


def test_what_follows_the_end_is_said():
    data = archive(FILES)
    with pytest.raises(tarfile.TarError, match="it ends at byte"):
        contents(data + archive(FILES))


def test_links_are_counted_as_empty_files():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for name, kind in (("hard.jpg", tarfile.LNKTYPE), ("soft.jpg", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "first.jpg"
            made.addfile(info)
    assert contents(buffer.getvalue()) == {"hard.jpg": b"", "soft.jpg": b""}
