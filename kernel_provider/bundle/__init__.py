"""Carrying everything to a machine without a network: one file, packed here, unpacked there.

``pack`` writes it and ``unpack`` puts it into effect. On a machine with nothing but Python,
``install`` (the first member of the file) gets to ``unpack`` through ``setup``: those two,
``archive``, ``model`` and ``errors`` need the standard library only, since they run out of
the wheel in the bundle.
"""
