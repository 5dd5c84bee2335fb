"""Persistent workers: tools that stay alive and take one action after the other.

`plan` says whether an action can use one and builds the request; `pool` keeps the processes.
Nothing here knows what starts a process, what encloses it, or how a request becomes bytes.
"""
