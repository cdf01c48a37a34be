"""Of what a command line gave, the part that was asked for."""

SIZE_FLAGS = ("depth", "width_ratio", "num_components", "allow_untrained")
SIZE_FLAGS += ("max_params", "max_macs", "max_latency_ms", "latency_device")


def given(options: dict) -> dict:
    """Those that were given."""
    return {name: value for name, value in options.items() if value is not None and value is not False}
