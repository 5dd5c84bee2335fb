"""A tool that does nothing, alone or as a persistent worker that answers at once.

It reads a request whole and says that all went well. It speaks Bazel's protocol in its proto form:
each message follows its length, a varint. It is the input of actions, so it uses nothing but
Python.
"""

import sys


def read_length() -> int:
    length = shift = 0
    while byte := sys.stdin.buffer.read(1):
        length |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return length
    sys.exit(0)


while "--persistent_worker" in sys.argv:
    sys.stdin.buffer.read(read_length())
    # An empty WorkResponse: exit code 0, no output.
    sys.stdout.buffer.write(b"\0")
    sys.stdout.buffer.flush()
