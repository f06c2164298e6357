"""What mmskd raises."""


class UsageError(ValueError, RuntimeError):
    """Something that the user can put right; the message says how.

    It is found in an option (a ValueError), or only in a model or a run that is there (a
    RuntimeError).
    """


class RunStopped(RuntimeError):
    """What ends a run that was set up rightly; the message says how to go on."""


class DiskFullError(RunStopped, OSError):
    """There was no room for a file; what it was to replace is untouched."""
