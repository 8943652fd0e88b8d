"""What Dataflow's launcher runs in the image: it takes a file, and no module."""

from beam_jobs.template import main
from pipeline import cli

if __name__ == "__main__":
    cli.launch(main)
