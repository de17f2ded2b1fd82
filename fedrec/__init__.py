"""Federated collaborative learning for recommender systems: numerics and contracts."""
