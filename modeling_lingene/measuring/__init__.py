"""What a size is worth: accuracy, parameters, MACs, latency; grids of sizes; tables and plots."""
