"""An experiment as one value: its fields, the parts that they name, and what needs what."""
