"""
The contract that every broker driver keeps, as tests. Run it on yours:

    # tests/test_mybroker_contract.py
    import pytest
    from forebay.testing.broker_contract import BrokerContract, BrokerHarness

    class MyHarness(BrokerHarness):
        def open(self): ...

    class TestMyBroker(BrokerContract):
        @pytest.fixture
        def harness(self) -> BrokerHarness:
            return MyHarness()

It needs pytest, pytest-asyncio in auto mode and hypothesis (`pip install
forebay[testing]`). For readable failures add, before the import,
`pytest.register_assert_rewrite("forebay.testing.broker_contract")`.

Where brokers honestly differ, `Broker.capabilities` says so, and a test skips
with its reason. A test that your driver cannot pass, and that its capabilities
do not excuse, is a defect: mark it `xfail(strict=True)` until it is mended.
"""

from forebay.testing.broker_contract.consuming import ConsumingContract
from forebay.testing.broker_contract.dying import DeadLetterContract
from forebay.testing.broker_contract.harness import BrokerHarness
from forebay.testing.broker_contract.model import ModelContract
from forebay.testing.broker_contract.ordering import OrderContract
from forebay.testing.broker_contract.outages import OutageContract
from forebay.testing.broker_contract.publishing import PublishingContract


class BrokerContract(
    PublishingContract, ConsumingContract, OrderContract, DeadLetterContract, OutageContract, ModelContract
):
    """All of it. Subclass it, and give it a `harness` fixture."""


__all__ = ["BrokerContract", "BrokerHarness"]
