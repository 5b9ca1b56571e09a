"""What a user is told when a job cannot go on: what is wrong, where, and what to do about it."""


class UserError(Exception):
    """Wrong use: a path, a flag or a file that does not fit. The commands exit with 2."""

    exit_code = 2


class WorkFailed(UserError):
    """The use was right and the work failed. The commands exit with 1."""

    exit_code = 1


class DecodeError(Exception):
    """A video that cannot be decoded. Its text is the reason that the sidecar records."""
