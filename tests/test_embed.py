import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from apache_beam.io.filesystems import FileSystems

from beam_jobs import embed, sidecar_writer, storage
from configs import demo
from pipeline import cli, example, features, manifest, reader, tfrecord, verify
from pipeline.batches import Batches
from pipeline.errors import UserError
from pipeline.shards import SPLITS, TRAIN, VALIDATION
from tests.helpers import encoded, noise
from tests.programs import content, error_of, run_preprocess
from trainer import loop, models, replicas

CLASSES = 1000


def run(folder, *extra):
    return cli.run(embed.main, ["embed", "--config=configs/demo.py", f"--data={folder}", *extra])


def stored(folder):
    """Features by key, as they stand in the sidecars."""
    found = {}
    for path in sorted(Path(folder).glob("*.features")):
        with open(path, "rb") as file:
            found.update(features.decode(record, CLASSES) for record in tfrecord.read(file))
    return found


@pytest.fixture(scope="session")
def made(compact_dataset, tmp_path_factory):
    return shutil.copytree(compact_dataset.directory, tmp_path_factory.mktemp("embedded") / "data")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "data")


@pytest.fixture
def embedded(folder, config):
    assert run(folder) == 0
    return folder


def check_features(folder, config, relative):
    """Every record has the features that a direct call gives for its own picture, and for its mirror image."""
    dataset, found = reader.open_dataset(str(folder)), stored(folder)
    extractor = models.create_extractor(config.model, config.seed)
    count = 0
    for split in SPLITS:
        for each in reader.examples(dataset, split):
            picture = each.tensors["l_299"]
            expected = extractor(np.stack([picture, picture[:, ::-1]])).numpy()
            own = found[each.key]
            assert np.abs(own - expected).max() <= relative * np.abs(expected).max()
            others = [values for key, values in found.items() if key != each.key]
            assert all((own != other).any() for other in others)
            count += 1
    assert count == len(found) == dataset.manifest.examples


def test_features_are_those_of_a_direct_call(embedded, config):
    check_features(embedded, config, 1e-4)


def test_embedding_says_what_it_did_and_nothing_else(folder, config, capsys):
    """Beam's inference warns of what nobody can mend."""
    assert run(folder) == 0
    warning, report = capsys.readouterr().err.splitlines()
    assert warning.startswith("WARNING: the feature extractor has RANDOM weights")
    assert " images/s in " in report
    assert run(folder) == 0
    assert "; all of it stood there and was checked, in " in capsys.readouterr().err


def test_the_manifest_knows_them(embedded, config):
    found = manifest.read(str(embedded))
    assert (
        found.features.extractor == models.create(config.model, config.seed).extractor.fingerprint
    )  # built in another way
    assert found.features.classes == CLASSES
    assert verify.verify(str(embedded)).features == found.features


def batches_of(dataset, stored_features, flip=True):
    layout, batches = example.layout(dataset.manifest.layout), Batches(dataset, 4, stored_features)
    streams = batches.train(1, range(2), flip=flip), batches.validation()
    return [[reader.unpack(batch, layout) for batch in stream] for stream in streams]


def test_a_step_has_the_same_loss_without_the_extractor(embedded, config):
    """In both splits, with pictures mirrored and not."""
    dataset = reader.open_dataset(str(embedded))
    model = models.create(config.model, config.seed)
    for with_extractor, without in zip(batches_of(dataset, False), batches_of(dataset, True), strict=True):
        assert len(with_extractor) > 0
        for one, other in zip(with_extractor, without, strict=True):
            assert "l_299" not in other
            np.testing.assert_array_equal(one["ab_224"], other["ab_224"])
            np.testing.assert_allclose(other["features"], model.extractor(one["l_299"]), rtol=1e-4, atol=1e-6)
            expected = model.loss(model.outputs(one, training=True), one)
            np.testing.assert_allclose(model.loss(model.outputs(other, training=True), other), expected, rtol=1e-4)


def test_training_reads_them(embedded, folder, config, tmp_path, monkeypatch, caplog):
    strategy = replicas.create_strategy(config.batch_size)
    expected = loop.train_and_evaluate(config, strategy, str(folder), str(tmp_path / "stored"))
    assert "features: as stored in" in caplog.text
    plain = shutil.copytree(folder, tmp_path / "plain")
    drop_features(plain)
    found = loop.train_and_evaluate(config, strategy, str(plain), str(tmp_path / "extracted"))
    np.testing.assert_allclose(found.validation_losses, expected.validation_losses, rtol=1e-3)


def drop_features(folder):
    """As a dataset was before `embed`."""
    found = manifest.read(str(folder))
    (folder / manifest.FILE_NAME).write_text(dataclasses.replace(found, features=None).to_json())


def test_features_of_another_extractor_are_no_use(embedded, config, tmp_path):
    config.seed += 1
    with pytest.raises(UserError, match="has features of extractor [0-9a-f]{16}, the configuration names"):
        loop.train_and_evaluate(config, replicas.create_strategy(4), str(embedded), str(tmp_path / "run"))


@pytest.mark.parametrize("workers", [1, 2])
def test_same_bytes_with_any_number_of_workers(workers, embedded, folder, made, config, tmp_path):
    again = shutil.copytree(made, tmp_path / "again")
    assert run(again, f"--direct_num_workers={workers}") == 0
    assert content(again) == content(embedded)


def test_the_model_is_built_once_in_a_process(folder, config, monkeypatch):
    """However many threads: once by the job to tell its fingerprint, once for all workers of the process."""
    built = []
    create = models.create_extractor
    monkeypatch.setattr(models, "create_extractor", lambda *args: built.append(args) or create(*args))
    assert run(folder, "--direct_num_workers=4") == 0
    assert len(built) == 2


def test_only_what_is_missing_or_damaged_is_made_again(embedded, config):
    whole = content(embedded)
    names = sorted(name for name in whole if features.is_sidecar_name(name))
    before = {name: os.stat(embedded / name).st_mtime_ns for name in names}
    (embedded / names[0]).unlink()
    damaged = bytearray(whole[names[1]])
    damaged[100] ^= 1
    (embedded / names[1]).write_bytes(damaged)
    assert run(embedded) == 0
    assert content(embedded) == whole
    remade = {name for name in names if os.stat(embedded / name).st_mtime_ns != before[name]}
    assert remade == set(names[:2])


def test_preprocessing_again_keeps_them(pictures, tmp_path, config):
    argv = [f"--source=places365:{pictures}/archives/val_256.tar", f"--output={tmp_path}/out"]
    assert run_preprocess(*argv) == 0
    assert run(tmp_path / "out") == 0
    whole = content(tmp_path / "out")
    assert run_preprocess(*argv) == 0
    assert content(tmp_path / "out") == whole
    assert run_preprocess(*argv, "--config.seed=1", "--overwrite") == 0
    assert not stored(tmp_path / "out")
    assert manifest.read(str(tmp_path / "out")).features is None


def test_a_shard_that_is_gone_is_noticed_beside_its_sidecar(embedded, capsys):
    next(embedded.glob("train-*.tfrecord")).unlink()
    assert run(embedded) == 1
    assert ".tfrecord is missing or damaged: its checksum differs; run beam_jobs.preprocess again" in error_of(capsys)


def test_another_extractor_is_refused_unless_it_may_replace(embedded, config, capsys):
    whole = content(embedded)
    assert run(embedded, "--config.seed=1") == 1
    assert "has features of extractor" in error_of(capsys)
    assert content(embedded) == whole
    assert run(embedded, "--config.seed=1", "--overwrite") == 0
    assert len(stored(embedded)) == manifest.read(str(embedded)).examples  # those of the first are deleted
    assert (
        manifest.read(str(embedded)).features.extractor
        != manifest.Manifest.from_json(whole[manifest.FILE_NAME].decode(), "").features.extractor
    )
    verify.verify(str(embedded))
    assert run(embedded, "--overwrite") == 0
    assert content(embedded) == whole


def test_what_another_job_has_registered_is_not_replaced(embedded):
    found = manifest.read(str(embedded), storage.open_binary)
    shards = {info.name: info for split in found.splits.values() for info in split.shards}

    def register(before, extractor):
        infos = [
            dataclasses.replace(info, name=features.sidecar_name(name, extractor)) for name, info in shards.items()
        ]
        sidecar_writer.register(infos, before, extractor, CLASSES, str(embedded))
        return manifest.read(str(embedded), storage.open_binary)

    of_another = register(found, "0" * 16)
    assert register(found, "0" * 16) == of_another  # a job whose engine tries again
    with pytest.raises(UserError, match="other features of it"):
        register(found, "1" * 16)
    assert manifest.read(str(embedded), storage.open_binary) == of_another


def test_mistakes_are_one_line(tmp_path, folder, config, capsys):
    assert run(tmp_path / "absent") == 1
    assert "is no dataset" in error_of(capsys)
    assert not (tmp_path / "absent").exists()
    shard = next(folder.glob("train-*.tfrecord"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert run(folder) == 1
    assert f"shard {shard} is missing or damaged" in error_of(capsys)


@pytest.mark.parametrize("what", ["flipped", "swapped", "missing"])
def test_verify_finds_damaged_sidecars(what, embedded, capsys):
    dataset = reader.open_dataset(str(embedded))
    sidecars = sorted(dataset.manifest.features.shards[TRAIN], key=lambda info: info.bytes)
    first, second = map(dataset.path, sidecars[-2:])
    if what == "flipped":
        data = bytearray(Path(first).read_bytes())
        data[9000] ^= 1
        Path(first).write_bytes(data)
    elif what == "swapped":
        Path(first).write_bytes(Path(second).read_bytes())
    else:
        Path(first).unlink()
    with pytest.raises(UserError, match=f"{os.path.basename(first)}.*; run beam_jobs.embed again"):
        verify.verify(str(embedded))
    assert run(embedded) == 0
    verify.verify(str(embedded))


def test_a_sidecar_out_of_line_stops_training(embedded):
    """Its keys are compared with those of the shard, record by record."""
    dataset = reader.open_dataset(str(embedded))
    reverse(longest_sidecar(dataset, VALIDATION))
    batches = Batches(dataset, 4, features=True)
    message = "validation-.*features is damaged: features of .* where those of .* belong; run beam_jobs.embed again"
    with pytest.raises(UserError, match=message), batches.naming_failures():
        list(batches.validation())


def test_keys_of_a_batch_with_features(embedded):
    dataset = reader.open_dataset(str(embedded))
    keys = Batches(dataset, 4, features=True).keys(1, 0, 2)
    assert keys == Batches(dataset, 4).keys(1, 0, 2)
    assert len(set(keys)) == 4


def longest_sidecar(dataset, split):
    return dataset.path(max(dataset.manifest.features.shards[split], key=lambda info: info.bytes))


def reverse(path):
    """Turns the order of a file's records around."""
    with open(path, "rb") as file:
        records = list(tfrecord.read(file))
    with open(path, "wb") as file:
        writer = tfrecord.Writer(file)
        for record in reversed(records):
            writer.write(record)


def test_features_of_others_stop_training_in_one_line(embedded, config, tmp_path):
    dataset = reader.open_dataset(str(embedded))
    reverse(longest_sidecar(dataset, TRAIN))
    with pytest.raises(UserError, match="is damaged: .*; run beam_jobs.embed again"):
        loop.train_and_evaluate(config, replicas.create_strategy(4), str(embedded), str(tmp_path / "run"))


def test_a_run_goes_on_with_features_made_meanwhile(folder, config, tmp_path, monkeypatch):
    config.learning_rates, config.epochs_per_learning_rate = (1e-3,), (1,)
    strategy = replicas.create_strategy(4)
    loop.train_and_evaluate(config, strategy, str(folder), str(tmp_path / "run"))
    assert run(folder) == 0
    config.epochs_per_learning_rate = (2,)
    state = loop.train_and_evaluate(config, strategy, str(folder), str(tmp_path / "run"))
    assert len(state.validation_losses) == 1


@pytest.mark.slow
def test_killed_at_any_write_the_manifest_names_what_is_there(embedded, config, monkeypatch):
    """With features of another extractor in place, at every file that the job writes, before and after."""
    rename, whole = FileSystems.rename, content(embedded)
    writes = 0
    for after in (False, True):
        for number in range(100):
            left = number

            def killed(*paths, after=after):
                nonlocal left, writes
                writes += 1
                left -= 1
                if left < 0 and not after:
                    raise UserError("killed")
                rename(*paths)
                if left < 0:
                    raise UserError("killed")

            monkeypatch.setattr(FileSystems, "rename", killed)
            status = run(embedded, "--config.seed=1", "--overwrite", "--direct_num_workers=1")
            monkeypatch.setattr(FileSystems, "rename", rename)
            (embedded / "job/claim.json").unlink(missing_ok=True)  # of this process, which is still there
            found = manifest.read(str(embedded))
            for info in itertools.chain(*found.features.shards.values()):
                assert storage.holds(str(embedded), info)
            if status == 0:
                break
        assert 0 < number < 99
        assert run(embedded, "--overwrite") == 0
        assert content(embedded) == whole
    assert writes > 2 * 9


@pytest.mark.slow
def test_workers_in_processes_of_their_own(made, tmp_path):
    """With the real extractor, as no double crosses to another process; one example in all."""
    (tmp_path / "a.png").write_bytes(encoded(noise(40, 40)))
    out = tmp_path / "out"
    assert (
        run_preprocess(f"--source=images:{tmp_path}/a.png", f"--output={out}", "--config.dataset.validation_fraction=0")
        == 0
    )
    assert run(out, "--direct_running_mode=multi_processing", "--direct_num_workers=2") == 0
    check_features(out, demo.get_config(), 1e-4)


@pytest.mark.slow
def test_with_the_real_extractor_killed_at_any_moment(pictures, tmp_path):
    """In processes of their own; then features as of a direct call."""
    out = tmp_path / "out"
    assert run_preprocess(f"--source=images:{pictures}/held_out", f"--output={out}") == 0
    command = [sys.executable, "-m", "beam_jobs.embed", "--config=configs/demo.py", f"--data={out}"]
    for seconds in (9, 12, 15):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    assert not list(out.rglob("*.tmp"))
    check_features(out, demo.get_config(), 1e-4)
    verify.verify(str(out))
