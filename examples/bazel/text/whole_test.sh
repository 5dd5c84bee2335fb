#!/bin/sh
# The parts were put together in order: 2,000 lines from 0 to 1999.
set -eu
whole=text/whole.txt
test "$(wc -l < "$whole")" -eq 2000
seq 0 1999 | cmp - "$whole"
echo "whole.txt is whole"
