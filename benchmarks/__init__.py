"""Suites, data, planning, execution and the ``bench`` command."""
