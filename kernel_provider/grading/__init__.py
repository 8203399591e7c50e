"""``executor-ml grade``: a class's notebooks, each in a sandbox of its own.

Submissions go in; a record of each comes out, which says what became of every cell, what
it earned and why, and with what it was graded. Nothing of a submission is ever executed
on this machine, and nothing of one is trusted: results are read as data.
"""
