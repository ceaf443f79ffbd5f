"""The exception whose sentence is written for users."""


class UserError(ValueError):
    """Invalid input or a broken environment: one sentence says what is wrong and what to do.

    Command-line entry points print the sentence without a traceback and exit with status 1.
    """
