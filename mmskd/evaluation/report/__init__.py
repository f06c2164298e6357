"""The comparison of training runs that ``tools/analysis/report.py`` writes.

From the folders of runs to one page: :mod:`.runs` reads and groups them, :mod:`.predictions` makes
or recalls what their checkpoints predict, :mod:`.rules` and :mod:`.judging` say which of it is
right, :mod:`.members` which runs can be compared, :mod:`.results` what may be concluded.
:mod:`.figures` chooses what the files in :mod:`.charts` draw, :mod:`.pictures` and
:mod:`.mistakes` draw on images, and :mod:`.page` puts it together.
"""
