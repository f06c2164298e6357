"""What mmskd raises."""


class UsageError(ValueError):
    """Something that the user can put right; the message says how."""
