"""``python examples/demo``: see stoker work. ``--help`` says what can be chosen."""

import importlib
import sys
from pathlib import Path

# A folder that is run is no package; the examples are a package of the whole checkout.
sys.path[0] = str(Path(__file__).resolve().parents[2])
importlib.import_module("examples.demo.demo").main()
