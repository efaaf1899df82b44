"""What the command says to people."""


class UsageError(Exception):
    """A sentence for people: what was given, what was needed, and the way out."""
