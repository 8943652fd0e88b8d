import html
import json
import re
import shlex
import shutil
import sys

import pytest
from absl import flags

from pipeline import cli
from pipeline.config import fields
from trainer import evaluate, report, workdir
from trainer.evaluation import DIFFERENCES, METHODS


def call(run):
    return cli.run(report.main, ["report", f"--workdir={run}"])


def page(run):
    assert call(run) == 0
    return (run / "report.html").read_text()


def texts(markup):
    """What a reader sees."""
    body = re.sub(r"(?s)<style.*?</style>|<svg.*?</svg>", " ", markup)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body)))


def test_all_that_is_known_of_a_run(evaluated, compact_dataset):
    markup = page(evaluated)
    text = texts(markup)
    metrics = json.loads((evaluated / "evaluation/metrics.json").read_text())
    for method in METHODS + DIFFERENCES:
        assert f"{method} {metrics['figures'][method]['mse']['value']:.4f} (" in text
    assert markup.count('src="data:image/jpeg;base64,') == len(metrics["shown"]) > 10
    for shown in metrics["shown"]:
        assert f"{shown['key']}" in text
    for source, count in compact_dataset.manifest.splits["train"].written.items():
        assert f"train {source} {compact_dataset.manifest.splits['train'].listed[source]} {count}" in text
    for title in ("Loss", "PSNR", "Colorfulness", "Learning rate", "Speed"):
        assert f'role="img" aria-label="{title}"' in markup
    losses = evaluate.load(str(evaluated)).figures["model"]["mse"].value
    assert f"validation: {losses:.4g} at step {metrics['step']}, from" in text
    assert "model.width_multiplier 0.0625" in text


def test_the_page_needs_no_other_file(evaluated):
    markup = page(evaluated)
    addresses = re.findall(r'(?:src|href|xlink:href)="([^"]*)"', markup) + re.findall(r"url\(([^)]*)\)", markup)
    assert len(addresses) > 20
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"@import|<script", markup)
    names = re.findall(r'\bid="([^"]*)"', markup)
    assert all(names.count(address[1:]) == 1 for address in addresses if address.startswith("#"))


def test_errors_by_class(evaluated, compact_dataset):
    rows = evaluate.load(str(evaluated)).pictures
    label = next(row["label"] for row in rows if row["label"])
    own = [row["model"]["ab_error"] for row in rows if row["label"] == label]
    assert f"{label} {len(own)} {sum(own) / len(own):.1f}" in texts(page(evaluated))


def test_the_same_again_is_the_same(evaluated):
    assert page(evaluated) == page(evaluated)


def test_the_commands_make_the_same_configuration(evaluated, compact_dataset):
    commands = [html.unescape(each) for each in re.findall(r"<code>(\.venv.*?)</code>", page(evaluated))]
    programs = [shlex.split(each)[2] for each in commands]
    assert programs == ["beam_jobs.preprocess", "trainer.train", "trainer.evaluate", "trainer.report"]
    config, dataset = workdir.load(str(evaluated))
    assert shlex.split(commands[2])[3:] == [
        f"--workdir={evaluated}", f"--data={compact_dataset.directory}", "--split=validation"
    ]  # fmt: skip
    for command, names in zip(commands[:2], (["seed"], fields(config)), strict=True):
        argv = shlex.split(command)[2:]
        values = flags.FlagValues()
        cli.define_config(values, argv)
        cli.parse(values, argv, None, known_only=True)
        given = fields(values.config)
        for name in names:
            if not name.startswith("dataset."):
                assert report._as_option(given[name]) == report._as_option(fields(config)[name])
        if "preprocess" in command:
            assert given["dataset.layout"] == dataset.layout == "compact"
            assert given["dataset.train_shards"] == len(dataset.splits["train"].shards) == 7
            assert given["dataset.filters.min_lightness"] == 0


def test_a_run_that_was_not_evaluated(finished_copy, capsys):
    shutil.rmtree(finished_copy / "evaluation", ignore_errors=True)
    markup = page(finished_copy)
    assert f"run python -m trainer.evaluate --workdir={finished_copy} --data=DATA , then" in texts(markup)
    assert (
        f"WARNING: {finished_copy} has no evaluation, so that the report says nothing of quality"
        in capsys.readouterr().err
    )
    assert 'aria-label="Loss"' in markup


def test_names_are_text_whatever_they_hold(evaluated, tmp_path):
    run = shutil.copytree(evaluated, tmp_path / "run")
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    metrics["shown"][0]["key"] = '<script>alert("x")</script>'
    (run / "evaluation/metrics.json").write_text(json.dumps(metrics))
    markup = page(run)
    assert "<script" not in markup
    assert "&lt;script&gt;alert(&#34;x&#34;)" in markup


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", b"{"),
        ("metrics.json", b"[]"),
        ("metrics.json", b'{"figures": {}}'),
        ("pictures.jsonl", b"{}"),
        ("pictures.jsonl", b""),
        ("best-0-*.png", b""),
    ],
)
def test_damaged_findings(evaluated, tmp_path, capsys, name, content):
    run = shutil.copytree(evaluated, tmp_path / "run")
    (path,) = (run / "evaluation").glob(name)
    path.write_bytes(content)
    assert call(run) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"error: {run}/evaluation")
    assert message.endswith("run trainer.evaluate again")
    assert not (run / "report.html").exists() or (run / "report.html").read_text() == page(evaluated)


def test_predictions_that_are_no_numbers(evaluated, tmp_path):
    run = shutil.copytree(evaluated, tmp_path / "run")
    rows = [json.loads(line) for line in (run / "evaluation/pictures.jsonl").read_text().splitlines()]
    for row in rows:
        row["model"]["colorfulness"] = float("nan")
    (run / "evaluation/pictures.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "no prediction is a number" in texts(page(run))


def test_a_run_that_has_recorded_nothing(evaluated, tmp_path):
    run = shutil.copytree(evaluated, tmp_path / "run")
    shutil.rmtree(run / "tensorboard")
    assert "The run has recorded nothing yet." in texts(page(run))


def test_no_run(tmp_path, capsys):
    assert call(tmp_path) == 1
    assert "holds no run" in capsys.readouterr().err
    assert cli.run(report.main, ["report", f"--workdir={tmp_path}", "x"]) == 2
    assert "unexpected argument x" in capsys.readouterr().err


def test_without_what_draws(evaluated, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert call(evaluated) == 1
    assert "the report needs jinja2; install koalarization[report]" in capsys.readouterr().err
