"""How models are trained: the loop, the draws of a sweep and its worker processes."""

from soupkit.task import torchvision_ops as torchvision_ops  # first: see there
