"""The first steps of jobs on pictures: sources to references, dealt to shards."""

from collections.abc import Sequence

import apache_beam as beam

from beam_jobs import blocks, index, sources
from beam_jobs.blocks import Placed
from beam_jobs.job_folder import JobFolder
from beam_jobs.sources import Source
from pipeline.shards import Partition


class ListPictures(beam.PTransform):
    """An open pipeline to blocks of references, each with the split and number of its shard.

    Args:
        inputs: collections of pictures.
        output: of the job, absolute; its folder keeps what archives were found to hold.
        partition: says which shard a picture belongs to.
    """

    def __init__(self, inputs: Sequence[Source], output: str, partition: Partition):
        super().__init__()
        self._inputs = list(inputs)
        self._index = JobFolder(output).index
        self._partition = partition

    def expand(self, pipeline: beam.Pipeline) -> beam.PCollection[Placed]:
        """Called by Beam."""
        return (
            pipeline
            | "Sources" >> beam.Create(self._inputs)
            | "Divide" >> beam.FlatMap(sources.parts)
            | "SpreadParts" >> beam.Reshuffle()
            | "ListPart" >> beam.FlatMap(index.list_part, self._index)
            | "Pack" >> beam.ParDo(blocks.Pack(self._partition)).with_output_types(Placed)
        )
