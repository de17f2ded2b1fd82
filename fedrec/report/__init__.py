"""What a run directory says, as tables and as one self-contained page."""
