"""The one exception that means "the user can mend this". Every room may import this file."""


class UserError(Exception):
    """A mistake in what the user gave: a flag, a config value, a file.

    Commands print it as at most three lines on standard error and exit with status 2.

    Args:
        field: what is wrong, as the user knows it: `config.model.num_heads`, `--workdir`, `reviews.csv:14`.
        value: the value or condition that was found there.
        mend: what the user can do about it, as an imperative.
    """

    def __init__(self, field: str, value: object, mend: str):
        super().__init__(field, value, mend)
        self.field = field
        self.value = value
        self.mend = mend

    def __str__(self) -> str:
        lines = (f"{self.field}: {self.value}", self.mend)
        return "\n".join(" ".join(line.split()) for line in lines)
