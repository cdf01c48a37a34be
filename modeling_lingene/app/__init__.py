"""The page to try bundles on: `lingene app`."""
