"""Shows what is in a dataset: its statistics, and a contact sheet of random examples.

    python -m pipeline.inspect --data=DATA --output=sheet.png

The sheet has for each example the picture as the model is to predict it, and the histograms of L, a and b. The same
--seed shows the same examples. Only these are read, so it takes a moment, whatever the size of the dataset.
"""

import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags

from pipeline import cli, color, example, files, manifest, tfrecord
from pipeline.errors import UsageError, UserError, one_line
from pipeline.example import Example
from pipeline.manifest import Manifest
from pipeline.shards import SPLITS, TRAIN

_COLUMNS = 6
_CELL_INCHES = (2.0, 2.9)
_PIXELS_PER_INCH = 120
_BINS = np.arange(-128, 129, 4)  # in Lab units, the same for all channels
_COLORS = {"L": "0.35", "a": "tab:red", "b": "tab:blue"}


def main(argv: Sequence[str]) -> None:
    """Shows the dataset that a command line names."""
    values = flags.FlagValues()
    flags.DEFINE_string("data", None, "The directory of a dataset, local or remote.", flag_values=values)
    flags.DEFINE_string("output", "sheet.png", "The PNG to write.", flag_values=values)
    flags.DEFINE_enum("split", TRAIN, list(SPLITS), "The split to show.", flag_values=values)
    flags.DEFINE_integer("examples", 24, "How many to show.", lower_bound=1, upper_bound=600, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Other examples for another seed.", lower_bound=0, flag_values=values)
    cli.parse_flags(values, argv, __doc__)
    cli.require(values, "data", "output")
    if not values.output.endswith(".png"):
        raise UsageError(f"--output={values.output}; name a .png")
    found = manifest.read(values.data)
    files.make_folder(os.path.dirname(values.output))  # before anything is read and drawn for it
    print(describe(found))
    shown = list(sample(values.data, found, values.split, values.examples, values.seed))
    if not shown:
        raise UserError(f"the {values.split} split of {values.data} is empty; choose another --split")
    print(describe_values(shown))
    files.write(values.output, draw(shown))
    print(f"{len(shown)} examples of the {values.split} split drawn in {values.output}")


def describe(found: Manifest) -> str:
    """What a manifest tells, for a person."""
    lines = [f"layout {found.layout}, resize mode {found.resize_mode.value}, seed {found.seed}"]
    for name, split in found.splits.items():
        sizes = [shard.bytes / 1e6 for shard in split.shards]
        lines.append(
            f"{name:<11} {split.examples:>10} examples in {len(sizes)} shards of {min(sizes):.1f} to {max(sizes):.1f} "
            f"MB, {sum(sizes):.1f} MB in all"
        )
        for source, listed in split.listed.items():
            written, rejected = split.written.get(source, 0), split.rejected.get(source, {})
            reasons = "".join(f", {count} {reason.value}" for reason, count in rejected.items())
            lines.append(f"  {source:<9} {listed:>10} listed, {written} written{reasons}")
    if found.features:
        lines.append(f"features    of extractor {found.features.extractor}, {found.features.classes} classes")
    return "\n".join(lines)


def sample(directory: str, found: Manifest, split: str, count: int, seed: int) -> Iterator[Example]:
    """Random examples of a split in the order in which they are stored; all of them, if there are fewer.

    Raises:
        UserError: a shard that cannot be read.
    """
    shards, layout = found.splits[split].shards, example.layout(found.layout)
    total = found.splits[split].examples
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
    first = 0
    for info in shards:
        own = [int(index) - first for index in chosen if first <= index < first + info.examples]
        first += info.examples
        if not own:
            continue
        path = os.path.join(directory, info.name)
        try:
            with files.open_binary(path) as file:
                yield from (example.decode(record, layout) for record in tfrecord.pick(file, own))
        except (OSError, ValueError) as error:
            raise UserError(f"shard {path} cannot be read: {one_line(error)}; run pipeline.verify") from error


def describe_values(examples: Sequence[Example]) -> str:
    """The distribution of L, a and b over all pixels of some examples, in Lab units."""
    channels = [_channels(each) for each in examples]
    sources = ", ".join(f"{count} of {source}" for source, count in Counter(each.source for each in examples).items())
    lines = [f"{len(examples)} random examples ({sources}):"]
    for name in _COLORS:
        values = np.concatenate([own[name].ravel() for own in channels])
        low, high = np.percentile(values, [1, 99])
        lines.append(
            f"  {name}  mean {values.mean():6.1f}, standard deviation {values.std():5.1f}, 98 % of the pixels from "
            f"{low:.1f} to {high:.1f}"
        )
    return "\n".join(lines)


def draw(examples: Sequence[Example]) -> bytes:
    """A contact sheet: each example's picture, and below it the histograms of L, a and b.

    Returns:
        A PNG file.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # which neither a worker nor training needs
    except ImportError as error:
        raise UserError("the contact sheet needs matplotlib; install koalarization[inspect]") from error
    columns = min(_COLUMNS, len(examples))
    rows = -(-len(examples) // columns)
    figure = Figure((columns * _CELL_INCHES[0], rows * _CELL_INCHES[1]), dpi=_PIXELS_PER_INCH, layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1] * rows)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, each in enumerate(examples):
        row, column = divmod(number, columns)
        channels = _channels(each)
        picture, histogram = axes[2 * row, column], axes[2 * row + 1, column]
        picture.imshow(color.lab_to_rgb(np.stack(list(channels.values()), axis=-1)))
        picture.set_title(_title(each), fontsize=6)
        for name, shade in _COLORS.items():
            histogram.hist(channels[name].ravel(), bins=_BINS, histtype="step", color=shade, label=name)
        histogram.set_xlim(-128, 128)
        histogram.set_axis_on()
        histogram.set_yticks([])
        histogram.tick_params(labelsize=5)
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _channels(each: Example) -> dict[str, np.ndarray]:
    """L, a and b of an example in Lab units, float32 [224, 224] each."""
    ab = color.denormalize_ab(each.tensors["ab_224"])
    return {"L": color.denormalize_l(each.tensors["l_224"][..., 0]), "a": ab[..., 0], "b": ab[..., 1]}


def _title(each: Example) -> str:
    """The end of the key, which tells pictures apart, and the label."""
    name = os.path.basename(each.key)
    lines = [name if len(name) <= 32 else f"…{name[-31:]}", each.label[-32:] or each.source]
    return "\n".join(line.replace("$", r"\$") for line in lines)


if __name__ == "__main__":
    cli.launch(main)
