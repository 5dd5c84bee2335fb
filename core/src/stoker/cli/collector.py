"""Settings of Python's garbage collector for a server."""

import gc

_YOUNG_OBJECTS = 20_000
"""How many objects come before it looks for cycles among them; the default is 700, which is less
than an action takes. Nearly all is freed without the collector: what it finds are the tracebacks
of calls that failed."""


def tune_collector() -> None:
    """Have the collector look less often, and never at what is there already.

    To be called once, as soon as a server serves: what it is made of stays as long as it does.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
