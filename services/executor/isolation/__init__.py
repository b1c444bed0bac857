"""Runs tools in subprocesses that can be killed, so that nothing a tool does reaches the service.

Use `pool.Pool`; `calls` has the values that go in and come out.
"""
