r"""Asks people which colors are real: those of photographs, or those that a trained model predicted.

    python -m trainer.study make --workdir=RUN --output=STUDY PICTURE FOLDER 'PATTERN'...
    python -m trainer.study serve --study=STUDY --host=127.0.0.1 --port=8000
    python -m trainer.study summarize --study=STUDY

`make` writes a folder with each picture twice, in its own colors and in predicted ones. `serve` shows them in a
browser, one at a time: each participant sees each picture once, half of them in predicted colors, in an order of their
own. Answers and times are kept in STUDY/answers.sqlite. `summarize` prints how many of the predicted pictures were
taken for real, with the 95 % interval, and writes STUDY/summary.json. `make --help` and the like show the options.
"""

from collections.abc import Sequence

from absl import flags

from pipeline import cli
from pipeline.errors import UsageError, UserError
from trainer.study import summary
from trainer.study.make import make


def main(argv: Sequence[str]) -> None:
    """Does what a command line names."""
    if len(argv) > 1 and argv[1] in _COMMANDS:
        _COMMANDS[argv[1]]([argv[0], *argv[2:]])
        return
    rest = cli.parse(flags.FlagValues(), argv, __doc__)
    found = f"unknown command {rest[0]}" if rest else "no command"
    raise UsageError(f"{found}: choose {', '.join(_COMMANDS)}")


def _make(argv: Sequence[str]) -> None:
    """Makes a study of pictures: files, folders and patterns such as 'photos/**.jpg', local or remote.

    They should be in color, and none that the model was trained on. Those without color are left out.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "The directory of a training run.", flag_values=values)
    flags.DEFINE_string("output", None, "The folder of the study, which is made; local.", flag_values=values)
    named = cli.parse(values, argv, _make.__doc__)
    cli.require(values, "workdir", "output")
    if not named:
        raise UsageError("no picture is named: give files, folders or patterns after the options")
    make(values.workdir, values.output, named)


def _serve(argv: Sequence[str]) -> None:
    """Serves a study until it is interrupted; the next time it goes on with the answers that it has."""
    values = _study_flags()
    flags.DEFINE_string(
        "host", "127.0.0.1", "The address to listen at: 0.0.0.0 for all of this machine's.", flag_values=values
    )
    flags.DEFINE_integer("port", 8000, "The port.", lower_bound=1, upper_bound=65535, flag_values=values)
    _parse(values, argv, _serve.__doc__)
    try:
        from trainer.study import server  # what it needs, nothing else does
    except ImportError as error:
        raise UserError(f"trainer.study serve needs {error.name}; install koalarization[study]") from error
    server.serve(values.study, values.host, values.port)


def _summarize(argv: Sequence[str]) -> None:
    """Prints what a study found, and writes it to STUDY/summary.json; it may be served meanwhile."""
    values = _study_flags()
    _parse(values, argv, _summarize.__doc__)
    summary.summarize(values.study)


def _study_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_string("study", None, "The folder that `make` wrote.", flag_values=values)
    return values


def _parse(values: flags.FlagValues, argv: Sequence[str], help_text: str | None) -> None:
    cli.parse_flags(values, argv, help_text)
    cli.require(values, "study")


_COMMANDS = {"make": _make, "serve": _serve, "summarize": _summarize}

if __name__ == "__main__":
    cli.launch(main)
