"""Permutation alignment: groups derived from the graph and proven, matching, REPAIR, barriers."""
