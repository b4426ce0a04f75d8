"""Recipes: functions that return a config, one file each, found by name."""

from __future__ import annotations

import importlib
import pkgutil

from stmeta.train.config import RunConfig


def names() -> list[str]:
    """Names of all recipes."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> RunConfig:
    """The config of a recipe.

    Raises:
        ValueError: there is no recipe of that name.
    """
    if name not in names():
        raise ValueError(
            f"recipe: no recipe is called {name!r}; choose one of {', '.join(names())}"
        )
    return importlib.import_module(f"{__name__}.{name}").recipe()
