"""The report's charts, a file for each kind; :mod:`.chart` draws and saves them."""
