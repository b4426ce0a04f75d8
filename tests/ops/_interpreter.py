"""Half of the time that Triton's interpreter takes, saved."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of device functions prepare `triton.language` once for each module that they lie in.

    The interpreter does it again, to the same effect, at each of thousands of calls. What a launch
    prepares itself it takes back behind it; what such a call prepares stays.
    """
    from triton.runtime import interpreter

    prepared = set()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        module = self.fn.__module__
        if module not in prepared:
            prepared.add(module)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
