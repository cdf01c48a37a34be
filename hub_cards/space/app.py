"""The page of a Space: bundles from the variable `BUNDLES`, names on the Hub with commas."""

import os

from modeling_lingene.app.page import serve


BUNDLES = os.environ.get("BUNDLES") or "modeling-lingene/lingene-fashion-mnist"

if __name__ == "__main__":
    serve([name.strip() for name in BUNDLES.split(",")], data="samples", host="0.0.0.0")
