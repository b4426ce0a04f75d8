"""Fused ops in other people's video Transformers: `fuse` puts them in, `unfuse` takes them out.

A block is replaced by giving the module a subclass of its own class. So parameters, buffers, hooks,
names in the state_dict and `isinstance` stay as they are, `deepcopy` and pickle work (the subclass
lies in a module and has a name), no other instance of the class is touched, and nothing has to be
remembered to go back: the class says what it was before.
"""

from stmeta.swap._fuse import fuse, unfuse
from stmeta.swap._report import FuseReport, Left, Replaced

__all__ = ["FuseReport", "Left", "Replaced", "fuse", "unfuse"]
