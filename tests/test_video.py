import os
import struct
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

import trainer
from pipeline import cli, color
from tests import cloud_storage
from tests.helpers import TINY, encoded, noise, write_video
from trainer import colorize, video


def call(run, output, *named):
    return cli.run(colorize.main, ["colorize", f"--workdir={run}", f"--output={output}", *map(str, named)])


def frames(path):
    """All frames of a video, uint8 [height, width, 3], with their times in seconds."""
    with av.open(str(path)) as container:
        return [(frame.to_ndarray(format="rgb24"), frame.time) for frame in container.decode(video=0)]


def sound(path):
    """What the sound of a video consists of: its packets' bytes and times."""
    with av.open(str(path)) as container:
        return [
            (bytes(packet), round(packet.pts * packet.time_base, 2))
            for packet in container.demux(audio=0)
            if packet.dts is not None
        ]


def ramp(count, height=48, width=64):
    """Gray frames that can be told apart: each a little lighter than the last, with one brighter corner."""
    result = []
    for number in range(count):
        frame = np.full((height, width, 3), 40 + 8 * number, np.uint8)
        frame[: height // 4, : width // 4] += 60
        result.append(frame)
    return result


def test_frames_times_and_sound(run, tmp_path, capsys):
    """What comes out has the same frames at the same times, in color, and the same sound."""
    source = tmp_path / "clip.mp4"
    write_video(source, ramp(20), sound="aac")
    assert call(run, tmp_path / "out", source) == 0
    result = tmp_path / "out/clip.mp4"
    before, after = frames(source), frames(result)
    assert [time for _, time in after] == [time for _, time in before]
    assert len(after) == 20
    for (gray, _), (colored, _) in zip(before, after, strict=True):
        assert np.abs(color.rgb_to_l(colored) - color.rgb_to_l(gray)).mean() < 2
        assert np.ptp(colored.astype(int), axis=-1).max() > 4  # not gray
    assert sound(result) == sound(source)
    assert "1 of 1 files are in" in capsys.readouterr().err


def test_on_cloud_storage(finished, tmp_path):
    """Run, video, a folder whose pictures' names have an empty part, and what becomes of them; as on the disk."""
    write_video(tmp_path / "clip.mp4", ramp(5), sound="aac")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/one.png").write_bytes(encoded(noise(20, 30)))
    here, there = tmp_path / "here", tmp_path / "there"
    program = [sys.executable, "-c", TINY.format("trainer.colorize")]
    with cloud_storage.running(tmp_path, "bucket") as cloud:
        cloud.upload(finished[0], "bucket", "run/")
        cloud.client().bucket("bucket").blob("clip.mp4").upload_from_filename(tmp_path / "clip.mp4")
        cloud.upload(tmp_path / "pictures", "bucket", "pictures//")
        for arguments in (
            (f"--workdir={finished[0]}", f"--output={here}", str(tmp_path / "clip.mp4"), str(tmp_path / "pictures")),
            ("--workdir=gs://bucket/run", "--output=gs://bucket/out", "gs://bucket/clip.mp4", "gs://bucket/pictures"),
        ):
            environment = {**os.environ, **cloud.environment}
            result = subprocess.run([*program, *arguments], env=environment, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
        cloud.download("bucket", "out/", there)
    assert sorted(path.name for path in there.iterdir()) == ["clip.mp4", "one.png"]
    assert (here / "one.png").read_bytes() == (there / "one.png").read_bytes()
    for (first, _), (second, _) in zip(frames(here / "clip.mp4"), frames(there / "clip.mp4"), strict=True):
        assert np.array_equal(first, second)
    assert sound(here / "clip.mp4") == sound(there / "clip.mp4")


def test_times_that_are_not_even(run, tmp_path):
    source = tmp_path / "clip.mkv"
    write_video(source, ramp(6), times=[0, 100, 130, 700, 1900, 2000])
    assert call(run, tmp_path / "out", source) == 0
    assert [time for _, time in frames(tmp_path / "out/clip.mkv")] == [0, 0.1, 0.13, 0.7, 1.9, 2.0]


def test_the_last_frame_stands_as_long(run, tmp_path):
    """In Matroska; in MP4, FFmpeg has no place for it."""
    source = tmp_path / "clip.mkv"
    write_video(source, ramp(4), times=[0, 1000, 2000, 3000], last=5000)

    def seconds(path):
        with av.open(str(path)) as container:
            return container.duration / av.time_base

    assert seconds(source) == pytest.approx(8, abs=0.1)
    assert call(run, tmp_path / "out", source) == 0
    assert seconds(tmp_path / "out/clip.mkv") == pytest.approx(8, abs=0.1)


@pytest.mark.parametrize(
    ("codec", "name", "result"),
    [("mpeg4", "Clip.AVI", "Clip.mkv"), ("libvpx-vp9", "clip.webm", "clip.mkv"), ("mjpeg", "clip.mov", "clip.mov")],
)
def test_other_kinds(run, tmp_path, codec, name, result):
    write_video(tmp_path / name, ramp(5), codec=codec)
    assert call(run, tmp_path / "out", tmp_path / name) == 0
    assert len(frames(tmp_path / "out" / result)) == 5


def test_odd_sizes_get_another_pixel(run, tmp_path):
    write_video(tmp_path / "clip.mkv", [noise(35, 51, number) for number in range(3)], codec="ffv1")
    assert call(run, tmp_path / "out", tmp_path / "clip.mkv") == 0
    assert frames(tmp_path / "out/clip.mkv")[0][0].shape == (36, 52, 3)


@pytest.mark.parametrize("turn", [90, 180, 270])
def test_a_phone_held_upright(run, tmp_path, turn):
    """What is stored lying, with a note to turn it, comes out upright and without the note."""
    write_video(tmp_path / "clip.mp4", ramp(3), rotation=turn)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        note = next(container.decode(video=0)).rotation
    assert note % 360 == turn
    assert call(run, tmp_path / "out", tmp_path / "clip.mp4") == 0
    with av.open(str(tmp_path / "out/clip.mp4")) as container:
        frame = next(container.decode(video=0))
    assert frame.rotation == 0
    expected = np.rot90(ramp(1)[0], turn // 90)
    assert np.abs(color.rgb_to_l(frame.to_ndarray(format="rgb24")) - color.rgb_to_l(expected)).mean() < 2


def test_a_mirror_image(run, tmp_path):
    """As cameras on the front of phones note it: a matrix, which no angle alone can say."""
    source = tmp_path / "clip.mp4"
    write_video(source, ramp(3))
    data = source.read_bytes()
    upright, mirrored = (struct.pack(">5i", first << 16, 0, 0, 0, 1 << 16) for first in (1, -1))
    track = data.index(b"tkhd")
    place = data.index(upright, track)
    source.write_bytes(data[:place] + mirrored + data[place + 20 :])
    assert call(run, tmp_path / "out", source) == 0
    expected = ramp(1)[0][:, ::-1]
    assert np.abs(color.rgb_to_l(frames(tmp_path / "out/clip.mp4")[0][0]) - color.rgb_to_l(expected)).mean() < 2


def test_a_clock_that_does_not_begin_at_zero(run, tmp_path):
    source = tmp_path / "clip.mkv"
    write_video(source, ramp(4), times=[3600000, 3600040, 3600080, 3600120])
    assert call(run, tmp_path / "out", source) == 0
    assert [time for _, time in frames(tmp_path / "out/clip.mkv")] == [0, 0.04, 0.08, 0.12]


def test_pixels_that_are_not_square(run, tmp_path):
    write_video(tmp_path / "clip.mp4", ramp(3), aspect=Fraction(16, 11))
    assert call(run, tmp_path / "out", tmp_path / "clip.mp4") == 0
    with av.open(str(tmp_path / "out/clip.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


def test_the_same_bytes_again_in_place_of_its_own_result(run, tmp_path, capsys):
    write_video(tmp_path / "clip.mp4", ramp(12), sound="aac")
    assert call(run, tmp_path / "out", tmp_path / "clip.mp4") == 0
    result = tmp_path / "out/clip.mp4"
    first = result.read_bytes()
    assert call(run, tmp_path / "out", tmp_path / "clip.mp4") == 0
    assert result.read_bytes() == first
    write_video(result, ramp(3))
    assert call(run, tmp_path / "out", tmp_path / "clip.mp4") == 1
    assert "would be overwritten, and was not written by this program" in capsys.readouterr().err


def test_bad_videos_are_named_and_leave_nothing(run, tmp_path, capsys):
    good = tmp_path / "good.mp4"
    write_video(good, ramp(3))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "picture.mkv").write_bytes(b"")
    write_video(tmp_path / "sound.mp4", [], sound="aac")
    photo = tmp_path / "photo.png"
    photo.write_bytes(encoded(noise(20, 20)))
    named = [tmp_path / name for name in ("text.mp4", "picture.mkv", "sound.mp4", "absent.mov")]
    assert call(run, tmp_path / "out", *named, good, photo) == 1
    message = capsys.readouterr().err
    assert "4 of 6 files could not be colorized" in message
    assert f"{tmp_path}/text.mp4 (FFmpeg: Invalid data found when processing input)" in message
    assert "sound.mp4 (not_an_image: a file without frames that can be decoded)" in message
    assert "absent.mov (No such file or directory)" in message
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good.mp4", "photo.png"]


@pytest.mark.parametrize(("name", "count"), [("clip.mkv", 1), ("clip.mp4", 1)])
def test_a_video_that_was_cut_short_is_written_and_named(run, tmp_path, capsys, name, count):
    source = tmp_path / name
    write_video(source, [noise(48, 64, number) for number in range(60)])
    size = source.stat().st_size
    source.write_bytes(source.read_bytes()[: size // 2])
    assert call(run, tmp_path / "out", source) == 1
    assert f"{source} ({count})" in capsys.readouterr().err
    assert 15 < len(frames(tmp_path / "out" / name)) < 45


@pytest.mark.parametrize(("place", "tag"), [("vids", b"FMP4"), ("auds", None)])
def test_what_no_codec_is_known_for(run, tmp_path, capsys, place, tag):
    source = tmp_path / "clip.avi"
    write_video(source, ramp(3), codec="mpeg4", sound="ac3")
    data = source.read_bytes()
    if tag is not None:
        data = data.replace(tag, b"ZZZZ")
    else:
        header = data.index(b"strf", data.index(b"auds")) + 8
        data = data[:header] + b"\x99\x99" + data[header + 2 :]
    source.write_bytes(data)
    assert call(run, tmp_path / "out", source) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    if tag is not None:
        assert "a file without frames that can be decoded" in message
    else:
        assert f"1 of 1 files had damaged parts, which their results lack: {source} (1)" in message
        assert len(frames(tmp_path / "out/clip.mkv")) == 3


def test_a_longer_stream_of_another_kind_is_no_damage(run, tmp_path):
    """A second picture stream goes on for seconds after the first has ended."""
    source = tmp_path / "clip.mkv"
    with av.open(str(source), "w") as output:
        streams = [output.add_stream("ffv1", rate=10, width=64, height=48, pix_fmt="bgr0") for _ in range(2)]
        streams[0].disposition = av.stream.Disposition.default
        for stream, count in zip(streams, (10, 80), strict=True):
            for rgb in ramp(1) * count:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            output.mux(stream.encode(None))
    assert call(run, tmp_path / "out", source) == 0
    assert len(frames(tmp_path / "out/clip.mkv")) == 10


def test_high_definition_that_does_not_say_so(run, tmp_path):
    """Players take it for BT.709, so that this is what its gray levels are read by, too."""
    green = np.zeros((720, 64, 3), np.uint8)
    green[..., 1] = 160
    source = tmp_path / "clip.mkv"
    frame = av.VideoFrame.from_ndarray(green, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
    frame.colorspace = 2  # unspecified
    with av.open(str(source), "w") as output:
        stream = output.add_stream("ffv1", rate=25, width=64, height=720, pix_fmt="yuv420p")
        output.mux([*stream.encode(frame), *stream.encode(None)])
    assert call(run, tmp_path / "out", source) == 0
    ((colored, _),) = frames(tmp_path / "out/clip.mkv")
    assert abs(color.rgb_to_l(colored).mean() - color.rgb_to_l(green).mean()) < 2


def test_a_playlist_opens_no_other_file(run, tmp_path, capsys):
    """A video from a stranger could else show files of this machine."""
    write_video(tmp_path / "secret.ts", ramp(3), codec="mpeg2video")
    playlist = tmp_path / "playlist.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/secret.ts\n#EXT-X-ENDLIST\n")
    assert call(run, tmp_path / "out", playlist) == 1
    assert f"{playlist} (" in capsys.readouterr().err
    assert not (tmp_path / "out/playlist.mp4").exists()


def test_sound_that_does_not_fit_is_encoded_anew(run, tmp_path):
    write_video(tmp_path / "clip.wmv", ramp(12), sound="wmav2", codec="mpeg4")
    assert call(run, tmp_path / "out", tmp_path / "clip.wmv") == 0

    def waveform(path):
        with av.open(str(path)) as container:
            return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)[0]

    before, after = waveform(tmp_path / "clip.wmv"), waveform(tmp_path / "out/clip.mkv")
    loudest = np.argmax(np.abs(np.fft.rfft(before[4096:12288]))), np.argmax(np.abs(np.fft.rfft(after[4096:12288])))
    assert before.size <= after.size < before.size + 3 * 1024  # what an encoder puts before and behind
    assert loudest[0] == loudest[1] == pytest.approx(8192 / (2 * np.pi * 10), abs=1)  # the tone of `write_video`


def test_a_remote_video(run, tmp_path):
    write_video(tmp_path / "clip.mp4", ramp(3))
    assert call(run, f"file://{tmp_path}/out", f"file://{tmp_path}/clip.mp4") == 0
    assert len(frames(tmp_path / "out/clip.mp4")) == 3
    assert video.is_result(f"file://{tmp_path}/out/clip.mp4")


def test_without_pyav(run, tmp_path, capsys, monkeypatch):
    write_video(tmp_path / "clip.mp4", ramp(3))
    monkeypatch.delitem(sys.modules, "trainer.video")
    monkeypatch.delattr(trainer, "video")
    monkeypatch.setitem(sys.modules, "av", None)
    assert call(run, tmp_path / "out", tmp_path / "clip.mp4") == 1
    assert "videos need PyAV; install koalarization[video]" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["-0.1", "1", "nan"])
def test_smoothing_out_of_range(value, capsys):
    assert cli.run(colorize.main, ["colorize", "--workdir=x", "--output=y", f"--smoothing={value}", "z"]) == 2
    assert f"--smoothing={value}; choose from 0, for none, to below 1" in capsys.readouterr().err
