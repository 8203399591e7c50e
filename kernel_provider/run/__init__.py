"""``executor-ml run``: a notebook from its first cell to its last, in one sandbox.

Parameters and limits go in, an executed notebook and a frozen result come out; nothing
of a notebook is ever executed on this machine.
"""
