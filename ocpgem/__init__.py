"""ocpgem: training, evaluation and submission of GemNet interatomic potentials at Open Catalyst scale.

From Python: `ocpgem.load`, `ocpgem.predict` and `ocpgem.score` (docs/python.md).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ocpgem.evaluate.api import Prediction, predict, score
    from ocpgem.evaluate.open_model import load

__version__ = "0.1.0"
__all__ = ["Prediction", "__version__", "load", "predict", "score"]

_PLACES = {
    "load": "ocpgem.evaluate.open_model",
    "predict": "ocpgem.evaluate.api",
    "score": "ocpgem.evaluate.api",
    "Prediction": "ocpgem.evaluate.api",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import ocpgem` and the command line stay immediate."""
    if name not in _PLACES:
        raise AttributeError(f"module 'ocpgem' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
