"""How well a client's models rank and predict: metrics by user, of one client and of many."""
