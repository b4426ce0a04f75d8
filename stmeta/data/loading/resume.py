"""The position of a loader, which another one resumes from."""

from __future__ import annotations

from collections.abc import Mapping

_EPOCHS = 2**40  # no run gets so far; what does not fit into 64 bits must not reach the sampler


class ResumableLoader:
    """Base of a loader that yields to the end of an epoch and then stands at the start of the next.

    A batch counts as delivered once it is handed out: `_advance` comes before its `yield`.
    """

    _epoch = 0
    _position = 0

    def __len__(self) -> int:
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        """Where the next batch will come from."""
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where `state_dict` was called.

        Raises:
            ValueError: the state lies outside of every epoch.
        """
        epoch, position = state["epoch"], state["position"]
        if not (0 <= epoch < _EPOCHS and 0 <= position < len(self)):
            raise ValueError(_outside(epoch, position, len(self)))
        self._epoch, self._position = epoch, position

    def _advance(self) -> None:
        self._position += 1
        if self._position == len(self):
            self._epoch, self._position = self._epoch + 1, 0


def resume_position(
    state: Mapping[str, int], mine: Mapping[str, int], length: int
) -> tuple[int, int]:
    """Epoch and position of a loader's next batch, from a state.

    Args:
        state: `epoch`, `position` and the other loader's identity.
        mine: samples, seed, repeats, step (clips of a batch over all ranks) of this loader, and
            labelled, how many of them have a label, where that is fixed.
        length: batches of an epoch of this loader.

    Raises:
        ValueError: the state is of other data or another seed, or lies inside a batch.
    """
    for name, usual in {"samples": mine["samples"], "seed": mine["seed"], "repeats": 1}.items():
        if state.get(name, usual) != mine[name]:
            raise ValueError(
                f"ClipLoader: the state is from {name} = {state.get(name, usual)}, this loader "
                f"has {mine[name]}; use the same data, seed and repeats, or start without the "
                "state"
            )
    step = state.get("step", mine["step"])
    # As shares, so that more or fewer ranks compare; -1 where none is set.
    theirs, own = state.get("labelled", -step), mine.get("labelled", -mine["step"])
    if theirs * mine["step"] != own * step:
        raise ValueError(
            f"ClipLoader: the state is from batches (over all ranks) with {_labels_text(state)}, "
            f"this loader makes them with {_labels_text(mine)}; use the same labelled_share, and a "
            "batch_size of which it is a whole number of clips"
        )
    if not (0 <= state["epoch"] < _EPOCHS and 0 <= state["position"]):
        raise ValueError("ClipLoader: " + _outside(state["epoch"], state["position"], length))
    position, rest = divmod(state["position"] * step, mine["step"])
    if rest or position > length:
        raise ValueError(
            f"ClipLoader: position {state['position']} of batches of {step} clips "
            f"(over all ranks) is not between batches of {mine['step']}; "
            "keep batch_size × world_size"
        )
    return (state["epoch"] + 1, 0) if position == length else (state["epoch"], position)


def _outside(epoch: int, position: int, length: int) -> str:
    return (
        f"the state is position {position} of epoch {epoch}, and an epoch has positions 0 to "
        f"{length - 1}; use a state that `state_dict` made"
    )


def _labels_text(state: Mapping[str, int]) -> str:
    if "labelled" not in state:
        return "labels as they come"
    return f"{state['labelled']} of {state['step']} clips labelled"
