"""A package, unlike other folders of tests, for what all of its modules share.

The browser's event loop runs in this thread while it is there, which other tests can't
have: fixtures of a package end with the last of its tests.
"""
