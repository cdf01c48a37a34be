"""Checkpoints of other libraries into bundles, and sizes of bundles out of them."""
