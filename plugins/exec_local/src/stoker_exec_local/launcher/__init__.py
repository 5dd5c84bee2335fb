"""The program that starts all processes, and what it shares with the server.

It runs without site-packages and imports as little as it can: each process begins as a copy of
it, and every page that it has touched makes that copy dearer. So neither typing, nor pathlib, nor
dataclasses appear in this package.
"""
