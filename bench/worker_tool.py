"""A persistent worker that answers at once, or after as long as ``--takes=SECONDS`` says.

It reads a request whole and says that all went well. It speaks Bazel's protocol in its proto form:
each message follows its length, a varint. It is the input of actions, so it uses nothing but
Python.
"""

import sys
import time


def read_length() -> int:
    length = shift = 0
    while byte := sys.stdin.buffer.read(1):
        length |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return length
    sys.exit(0)


takes_seconds = 0.0
for argument in sys.argv[1:]:
    if argument.startswith("--takes="):
        takes_seconds = float(argument.partition("=")[2])

while True:
    sys.stdin.buffer.read(read_length())
    if takes_seconds:
        time.sleep(takes_seconds)
    # An empty WorkResponse: exit code 0, no output.
    sys.stdout.buffer.write(b"\0")
    sys.stdout.buffer.flush()
