"""Failures inside the contract suite show their values, as in any test of ours."""

import pytest

pytest.register_assert_rewrite("forebay.testing.sink_contract")
