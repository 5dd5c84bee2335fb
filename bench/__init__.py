"""Measures stoker against what is there anyway: a bare server, a bare process, a plain loop.

Run it by ``make bench``, or ``python -m bench --help`` in the project's root. Each module that
has a function `measure` is one measurement; README.md says how to read the figures.
"""
