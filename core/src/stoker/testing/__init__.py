"""Conformance suites for plugin authors. They need pytest and pytest-trio.

A suite is a class of laws, one a test. A plugin inherits it and says, in one fixture, how to open
its service; pytest finds the rest::

    # tests/test_my_store.py
    from stoker.testing.blob_store_laws import BlobStoreLaws

    class TestMyStore(BlobStoreLaws):
        @pytest.fixture
        async def store(self, tmp_path):
            async with open_my_store(tmp_path) as store:
                yield store

with ``trio_mode = true`` in pytest's configuration. To see the values behind a failed assertion,
put ``pytest.register_assert_rewrite("stoker.testing")`` into the topmost ``conftest.py``.

- :mod:`stoker.testing.blob_store_laws`: what every blob store promises
- :mod:`stoker.testing.action_cache_laws`: what every action cache promises
- :mod:`stoker.testing.execution_strategy_laws`: what every execution strategy promises
- :mod:`stoker.testing.sandbox_laws`: what every sandbox promises
- :mod:`stoker.testing.isolation_laws`: what a sandbox promises besides that isolates
- :mod:`stoker.testing.worker_protocol_laws`: what every worker protocol promises
"""
