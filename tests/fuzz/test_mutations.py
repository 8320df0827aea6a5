"""A short run of the fuzzer over every parser: python tests/fuzz/mutations.py is the long one."""

import pytest
from fuzz.mutations import fuzz
from fuzz.parsers import PARSERS
from fuzz.test_fuzz import MORE

COSTLY = {"manifest": 40, "recipe": 50, "variables": 50, "configuration": 80, "mergekit": 80, "settings": 150}


@pytest.mark.parametrize("name", PARSERS)
def test_every_input_is_read_or_refused(name: str) -> None:
    executions = int(MORE or COSTLY.get(name, 200))
    outcome = fuzz(name, executions, seed=int(MORE or 0))
    found = {
        kind: text for kind, text in outcome.findings.items() if kind != "slow"
    }  # the machine may be busy
    assert not found
    assert outcome.counts["executions"] == executions
    assert outcome.counts["refused"] > 0
