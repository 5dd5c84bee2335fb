"""stoker: a remote build execution server that keeps compilers hot.

Plugins import :mod:`stoker.spi` (and :mod:`stoker.protos`); their tests also :mod:`stoker.testing`.
Everything else is private and may change in any release.
"""

__version__ = "0.1.0"
