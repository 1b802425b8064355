"""coremltools without its chatter: import lines about macOS-only parts, version notes, bars."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back warnings and progress bars inside the block; errors are logged and raised as ever.

    Every import of coremltools belongs inside one: on Linux the first prints a line for each
    framework that only macOS has.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    level, with_bar = logging.root.manager.disable, tqdm.__init__
    logging.disable(max(level, logging.WARNING))
    tqdm.__init__ = partialmethod(with_bar, disable=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__ = with_bar
        logging.disable(level)
