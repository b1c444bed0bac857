"""Runs tools in subprocesses that can be killed: nothing a tool does reaches the service.

`pool.Pool` is the door; `calls` holds what goes in and what comes out.
"""
