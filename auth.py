"""Who is calling."""


def authorize() -> None:
    """Let the caller of a protected operation pass, or refuse."""
