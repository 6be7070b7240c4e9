"""The suites: one file each, holding one ``suite``."""
