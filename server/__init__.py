"""The server side: a Flower ServerApp and the strategy that coordinates the shared parameters."""
