"""The objectives: one file each, holding one ``recipe``."""
