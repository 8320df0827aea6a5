"""A network's exported graph, followed along the axes of its tensors, and the proof of what was found."""

from soupkit.align.graph import unify as unify  # first: it completes the algebra of axes
