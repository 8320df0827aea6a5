"""Averages of weights in the training loops of others: each module is imported by who has its library."""

from soupkit.integrations.averages import Averages as Averages
