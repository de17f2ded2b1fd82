"""Studies: sweeps over experiments, each a command that prints a table and leaves it as files."""
