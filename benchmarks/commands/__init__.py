"""The commands of ``bench``, a file each; ``benchmarks.cli`` puts them together.

A command reads its options, calls a module of ``benchmarks`` or ``leaderboard`` that does the work, and prints. Heavy
imports stand inside the functions.
"""
