"""What clients and server agree on: who takes part, what travels and how, and what ties the clients."""
