"""Attacks on what a server sees: each takes a transcript and what its adversary is declared to know, and gives scores.

The truth is apart: `targets` makes questions of it, `scores` judges the answers, `table` lists all attacks with both.
"""
