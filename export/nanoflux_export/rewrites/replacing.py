"""A module with some of its parts replaced, and the module it came from as it was."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import nn


def with_parts(module: nn.Module, parts: Mapping[str, nn.Module]) -> nn.Module:
    """A copy that has `parts` at their paths and shares all weights with the original.

    A part that the module holds at several places is replaced at all of them.
    """
    tensors = chain(module.parameters(), module.buffers())
    new: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    new |= {id(module.get_submodule(path)): part for path, part in parts.items()}
    # What deepcopy finds here it takes for copied already.
    return copy.deepcopy(module, new)
