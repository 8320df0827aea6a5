"""What is trained and scored, and how. Importing any module of it first makes timm and open_clip
importable."""

from soupkit.task import torchvision_ops as torchvision_ops  # first: see there
