"""The contract that datasets are written and read by.

Everything here but `reader` and `color_tf` is NumPy and imports without TensorFlow, so that Beam workers need none.
"""
