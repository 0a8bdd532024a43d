"""What ends a command with a sentence instead of a traceback."""

from __future__ import annotations


class HpoError(Exception):
    """The message says what was expected, what came and what to do, in one or two lines."""

    exit_code = 1


class InputError(HpoError):
    """A file, an option or a name that the user gave."""

    exit_code = 2


class SetupError(HpoError):
    """Database, model, data or versions: nothing that another try would mend."""

    exit_code = 78


class Interrupted(HpoError):
    """Stopped with work left: starting the command again goes on."""

    exit_code = 75


def in_words(error: Exception) -> tuple[str, int] | None:
    """What to say and the exit code; None for a defect."""
    if code := getattr(error, "exit_code", None):
        return str(error), code
    import psycopg2

    from storage.engine import LOST, StorageError

    if isinstance(error, psycopg2.Error):
        return f"PostgreSQL refuses: {str(error).partition(chr(10))[0]}", StorageError.exit_code
    if isinstance(error, LOST):
        return "lost the database; run the same command again when it is back", Interrupted.exit_code
    return None
