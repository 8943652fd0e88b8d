"""Trains color models on the datasets of `pipeline`, and uses them."""

from pipeline import loading

loading.keep_quiet()
