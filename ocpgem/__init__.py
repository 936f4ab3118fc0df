"""ocpgem: training, evaluation and submission of GemNet interatomic potentials at Open Catalyst scale.

From Python: `ocpgem.load`, `ocpgem.predict`, `ocpgem.score`, `ocpgem.relax` and `ocpgem.Calculator` (docs/python.md).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ocpgem.evaluate.api import Prediction, predict, score
    from ocpgem.evaluate.calculator import Calculator
    from ocpgem.evaluate.open_model import load
    from ocpgem.evaluate.relax.api import RelaxedStructure, relax

__version__ = "0.1.0"
__all__ = [
    "Calculator",
    "Prediction",
    "RelaxedStructure",
    "__version__",
    "load",
    "predict",
    "relax",
    "score",
]

_PLACES = {
    "load": "ocpgem.evaluate.open_model",
    "predict": "ocpgem.evaluate.api",
    "score": "ocpgem.evaluate.api",
    "Prediction": "ocpgem.evaluate.api",
    "relax": "ocpgem.evaluate.relax.api",
    "RelaxedStructure": "ocpgem.evaluate.relax.api",
    "Calculator": "ocpgem.evaluate.calculator",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import ocpgem` and the command line stay immediate."""
    if name not in _PLACES:
        raise AttributeError(f"module 'ocpgem' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
