"""Parked sandboxes: how many there should be, who keeps them, how they are driven by hand.

The shelf that they lie on, and that a launch takes them from, is ``warden/shelf.py``.
"""
