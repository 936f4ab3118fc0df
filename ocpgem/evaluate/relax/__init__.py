"""Relaxation of many systems at once; see `api.relax` for structures and `dataset.relax_dataset` for data sets."""
