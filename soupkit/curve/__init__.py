"""Paths of low loss between checkpoints, the planes they lie in, and ensembles that are collected along the
way."""
