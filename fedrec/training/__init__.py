"""Local training: one loop, over steps of k >= 1 clients x L rows, whatever makes the gradients."""
