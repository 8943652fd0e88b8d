"""Pictures as no camera makes them: nothing crashes, nothing hangs, every one is written or rejected."""

import io
import json
import re
import struct
import subprocess
import sys
import tarfile
import zlib
from collections import Counter

import av
import numpy as np
import pytest
from PIL import Image
from skimage import data

from pipeline import cli, image, manifest, verify
from tests.helpers import TINY, encoded, write_video
from trainer import colorize

COUNT = 5000
COLORIZED = 2000
VIDEOS = 50
SECONDS = 300  # a job that takes as long hangs


def originals():
    """A small photograph, its sides 64 and 48, in every format and in modes that decoders treat each in its own way."""
    photograph = Image.fromarray(data.astronaut()).resize((64, 48))
    yield from (encoded(photograph, "JPEG", **options) for options in ({}, {"progressive": True}, {"optimize": True}))
    yield encoded(photograph.convert("CMYK"), "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    yield encoded(photograph, "JPEG", exif=exif)
    yield encoded(photograph, "PNG")
    yield encoded(photograph.quantize(64), "PNG")
    yield encoded(photograph.convert("RGBA"), "PNG")
    yield encoded(Image.fromarray(np.asarray(photograph.convert("L")).astype(np.uint16) * 257), "PNG")
    yield encoded(photograph, "WEBP")
    yield encoded(photograph, "WEBP", lossless=True)
    yield encoded(photograph, "GIF")
    yield encoded(photograph, "BMP")
    yield encoded(photograph, "TIFF")
    yield encoded(photograph, "TIFF", compression="tiff_lzw")


def flipped(picture, others, generator):
    mutated = bytearray(picture)
    for position in generator.integers(len(mutated), size=generator.integers(1, 20)):
        mutated[position] ^= 1 << generator.integers(8)
    return bytes(mutated)


def truncated(picture, others, generator):
    return picture[: generator.integers(len(picture))]


def with_another_header(picture, others, generator):
    other, length = others[generator.integers(len(others))], generator.integers(2, 100)
    return other[:length] + picture[length:]


def lying(picture, others, generator):
    """Width or height as found in the header, in either order of bytes, become something else."""
    mutated = bytearray(picture)
    for side in (64, 48):
        for code in ("<H", ">H", "<I", ">I"):
            lie = int(generator.choice([0, 1, 47, 65, 1000, 7000, 65535, 2**31 - 1, 2**32 - 1]))
            value = struct.pack(code, lie & (0xFFFF if "H" in code else 0xFFFFFFFF))
            for found in re.finditer(re.escape(struct.pack(code, side)), picture[:400]):
                if generator.random() < 0.3:
                    mutated[found.start() : found.end()] = value
    if picture.startswith(b"\x89PNG"):  # its decoder believes nothing without a checksum
        mutated[29:33] = struct.pack(">I", zlib.crc32(mutated[12:29]))
    return bytes(mutated)


MUTATIONS = (flipped, truncated, with_another_header, lying)


def mutations(count):
    """The name of each mutation, and what it made of a picture."""
    generator, pictures = np.random.default_rng(0), list(originals())
    for number in range(count):
        mutate = MUTATIONS[number % len(MUTATIONS)]
        yield mutate.__name__, mutate(pictures[number % len(pictures)], pictures, generator)


@pytest.mark.slow
def test_every_mutated_picture_is_accounted_for(tmp_path):
    with tarfile.open(tmp_path / "mutated.tar", "w") as tar:
        for number, (name, mutated) in enumerate(mutations(COUNT)):
            member = tarfile.TarInfo(f"{name}/{number:05d}")
            member.size = len(mutated)
            tar.addfile(member, io.BytesIO(mutated))
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "beam_jobs.preprocess", "--config=configs/demo.py", "--config.dataset.layout=compact",
        f"--source=images:{tmp_path}/mutated.tar", f"--output={out}", "--max_reject_fraction=1",
    ]  # fmt: skip
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=False)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    found = manifest.read(str(out))
    assert found.listed == COUNT == found.examples + sum(found.rejected.values())
    rejects = [json.loads(line) for line in (out / manifest.REJECTS_FILE_NAME).read_text().splitlines()]
    assert len({each["key"] for each in rejects}) == len(rejects) == sum(found.rejected.values())
    assert all(each["detail"] and "\n" not in each["detail"] for each in rejects)
    by_mutation = Counter(each["key"].split("/")[1] for each in rejects)
    for mutate in MUTATIONS:  # some could be used all the same, others not: or the mutations would be no test
        assert COUNT / len(MUTATIONS) * 0.02 < by_mutation[mutate.__name__] < COUNT / len(MUTATIONS)
    assert {"not_an_image", "truncated", "too_small", "too_large"} <= {reason.value for reason in found.rejected}
    verify.verify(str(out))


@pytest.mark.slow
def test_every_mutated_picture_is_colorized_or_named(tiny_extractor, finished, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for number, (name, mutated) in enumerate(mutations(COLORIZED)):
        (tmp_path / f"in/{number:05d}-{name}").write_bytes(mutated)
    argv = ["colorize", f"--workdir={finished[0]}", f"--output={tmp_path}/out", str(tmp_path / "in")]
    assert cli.run(colorize.main, argv) == 1
    message = capsys.readouterr().err
    written = {path.stem for path in (tmp_path / "out").iterdir()}
    named = set(re.findall(r"/in/(\d{5}-\w+) \(", message))
    assert not written & named
    assert written | named == {path.name for path in (tmp_path / "in").iterdir()}
    assert f"error: {len(named)} of {COLORIZED} files could not be colorized" in message
    assert COLORIZED * 0.1 < len(named) < COLORIZED * 0.9
    for path in (tmp_path / "out").iterdir():
        image.decode(path.read_bytes())


@pytest.mark.slow
def test_every_mutated_video_is_colorized_or_named(finished, tmp_path):
    """In a process of its own: a decoder that crashes or hangs would take others along."""
    photograph = np.asarray(Image.fromarray(data.astronaut()).resize((80, 64)))
    pan = [np.ascontiguousarray(photograph[:48, number : number + 64]) for number in range(8)]
    originals = []
    for name, options in (
        ("clip.mp4", {"sound": "aac"}), ("clip.mkv", {"codec": "ffv1"}), ("clip.avi", {"codec": "mpeg4"}),
        ("clip.webm", {"codec": "libvpx-vp9"}), ("clip.ts", {"codec": "mpeg2video"}), ("clip.mov", {"codec": "mjpeg"}),
    ):  # fmt: skip
        write_video(tmp_path / name, pan, **options)
        originals.append((name, (tmp_path / name).read_bytes()))
    (tmp_path / "in").mkdir()
    generator, videos = np.random.default_rng(0), [content for _, content in originals]
    for number in range(VIDEOS):
        mutate = MUTATIONS[number % len(MUTATIONS)]
        name, content = originals[number % len(originals)]
        mutated = tmp_path / f"in/{number:02d}-{mutate.__name__}-{name}"
        mutated.write_bytes(mutate(content, videos, generator))
    command = [
        sys.executable,
        "-c",
        TINY.format("trainer.colorize"),
        f"--workdir={finished[0]}",
        f"--output={tmp_path}/out",
    ]
    command.append(str(tmp_path / "in"))
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=SECONDS, check=False)
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    named = set(re.findall(r"/in/(\d\d)-[\w.-]+ \(", result.stderr))
    written = {path.name[:2] for path in (tmp_path / "out").iterdir()}
    assert written | named == {f"{number:02d}" for number in range(VIDEOS)}
    assert VIDEOS * 0.1 < len(named) < VIDEOS * 0.9
    for path in (tmp_path / "out").iterdir():
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) > 0
