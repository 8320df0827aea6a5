"""What JSON holds under names: configurations, recipes, results, what manifests note."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
"""An object as JSON has it, to be filled or written."""
JsonView = Mapping[str, Any]
"""One that is only read."""
