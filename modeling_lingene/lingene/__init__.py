"""`lingene ...`: the command line of `modeling_lingene`, which it imports when a command is known, not before."""
