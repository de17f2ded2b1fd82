"""The client side: a Flower ClientApp, its private memory, and recommendations from a finished run."""
