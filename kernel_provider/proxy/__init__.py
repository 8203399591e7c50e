"""A socket before the engine's, for people who may start kernels and nothing else.

Whoever can use the engine's own socket is root. Through this one come the calls of a
kernel's life (D7), each with the body that this package itself would send, under the
administrator's ceilings, and only to containers of the same user.
"""
