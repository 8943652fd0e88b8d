"""What Dataflow's launcher runs in the image: it takes a file, and no module."""

import os

from beam_jobs.template import main
from pipeline import cli

if __name__ == "__main__":
    os.chdir(os.path.dirname(os.path.abspath(__file__)))  # configurations are named as in the checkout
    cli.launch(main)
