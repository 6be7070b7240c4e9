"""Pre-training pictures: in memory (``memory``), or read when they are needed (``stream``).

A stream takes its pictures from a store: class folders (``folder``), tar shards (``shards``) or Hugging Face parquet
(``parquet``); where the decoded set fits, from a memory-mapped file (``decoded``). ``loader`` makes batches of either.
"""
