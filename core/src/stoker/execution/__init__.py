"""One action, from its messages to an outcome.

The input root becomes a folder, a process or a persistent worker does the work, and what it made
goes to the CAS. Nothing here knows who asked.
"""
