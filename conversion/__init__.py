"""Checkpoints of other libraries into bundles, and sizes of bundles out of them.

`convert.convert` and `export.export` are the way in and out; the command line calls them.
"""
