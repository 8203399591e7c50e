"""The host process beside each sandbox: its sockets, its relay, its lifeline.

Standard library only, and run as ``python -I -S``: one of these lives as long as each
kernel, and starts before each kernel can.
"""
