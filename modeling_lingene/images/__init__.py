"""Image sets in, batches out: reading, decoding, augmenting, streaming."""
