#!/bin/sh
# Both workers wrote the same book, and it has a heading for every page.
set -eu
cmp "$1" "$2"
headings=$(grep -c '^<h1>' "$1")
echo "the book has $headings pages"
test "$headings" -eq 12
