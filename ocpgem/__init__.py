"""ocpgem: training, evaluation and submission of GemNet interatomic potentials at Open Catalyst scale."""

__version__ = "0.1.0"
