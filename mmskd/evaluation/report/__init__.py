"""The comparison of training runs that ``tools/analysis/report.py`` writes.

From the folders of runs to one page: :mod:`.runs` reads and groups them, :mod:`.predictions` makes
or recalls what their checkpoints predict, :mod:`.judging` says what of it is right,
:mod:`.statistics` compares, :mod:`.charts` and :mod:`.pictures` draw, and :mod:`.page` puts it
together.
"""
