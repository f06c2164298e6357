"""What mmskd raises."""


class UsageError(ValueError, RuntimeError):
    """Something that the user can put right; the message says how.

    It is found in an option (a ValueError), or only in a model or a run that is there (a RuntimeError).
    """
