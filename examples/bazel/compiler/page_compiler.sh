#!/bin/sh
# Starts the compiler from its runfiles, which Bazel lays beside this file wherever it runs.
# Safe path: Python is to import the declared inputs, not what lies in the current folder.
# No bytecode: a tool does not write among its own inputs.
export PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH="$0.runfiles/stoker_example"
exec python3 -m compiler.page_compiler "$@"
