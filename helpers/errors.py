"""The one exception a user is meant to read."""


class UserError(ValueError):
    """Bad input or a broken surrounding: one sentence that says what is wrong and what to do.

    Command-line entry points print the sentence without a traceback and exit with status 1.
    """
