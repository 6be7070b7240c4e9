"""Records in, tables out: reads the result of every cell, checks it, and shows it as a table in six formats.

==================  =================================================================================================
``records``         what one cell found, written and read as ``result.json``
``statistics``      mean and 95 % interval over seeds, ranks
``table``           records to one model of the table, where every number is rounded and worded once
``analyses``        what is known of backbones beside their scores, written as ``analysis.json``; correlations
``learned``         that as a part of the HTML page
``claims``          that held against the claims of a paper: ``docs/dark-secrets.md``
``render``          that model as markdown, CSV, JSON, LaTeX, HTML, or on a terminal
==================  =================================================================================================

Nothing here imports torch or an OpenMMLab package, and rich, jinja2 and tabulate are imported where they are needed, so
that a table of many records stands in well under a second.
"""
