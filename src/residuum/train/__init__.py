"""Training: what is done (`recipe.py`), how (`loop.py`, `step.py`, `optim.py`, `state.py`), where it stays (`run.py`).

    from residuum.train import Recipe, fit

Torch is imported with the first name that needs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from residuum.train.execution import Execution as Execution
    from residuum.train.loggers import Callback as Callback
    from residuum.train.loggers import ConsoleLogger as ConsoleLogger
    from residuum.train.recipe import Recipe as Recipe
    from residuum.train.session import Result as Result
    from residuum.train.session import fit as fit
    from residuum.train.session import resume as resume
    from residuum.train.step import evaluate as evaluate
    from residuum.train.step import train_step as train_step

_HOMES = {
    "Callback": "loggers",
    "ConsoleLogger": "loggers",
    "Execution": "execution",
    "Recipe": "recipe",
    "Result": "session",
    "evaluate": "step",
    "fit": "session",
    "resume": "session",
    "train_step": "step",
}
__all__ = ["Callback", "ConsoleLogger", "Execution", "Recipe", "Result", "evaluate", "fit", "resume", "train_step"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'residuum.train' has no attribute {name!r}")
    return getattr(import_module(f"residuum.train.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__]
