"""What the commands of `lingene` do: options in, tables and files out. The command line itself is `lingene/`."""
