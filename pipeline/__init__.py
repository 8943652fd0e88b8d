"""The contract that datasets are written and read by.

Everything here but `reader` and `color_tf` is NumPy and imports without TensorFlow, so that Beam workers need none.
"""

from pipeline import interrupts

PACKAGES = ("cloud", "pipeline", "beam_jobs", "trainer", "tools", "benchmarks")  # of this project

interrupts.keep_brief(PACKAGES)
