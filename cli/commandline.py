"""Flags, and what becomes of a mistake: status 2 and at most three lines, before anything is compiled or written."""

import ast
import difflib
import errno
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from errors import UserError


def run(main: Callable[[list[str]], int]) -> None:
    """Runs a command and exits with its status; a UserError is printed and becomes status 2."""
    try:
        status = main(sys.argv)
    except UserError as error:
        print(error, file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # the reader of our output, `head` say, has had enough
        sys.stderr.close()
        status = 0
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(
            UserError(f"{str(error.filename)[:60]!r}…", "is too long for a file's name", "Shorten it."), file=sys.stderr
        )
        status = 2
    sys.exit(status)


def parse(argv: Sequence[str], defaults: dict[str, Any], usage: str) -> dict[str, Any]:
    """The values of the flags, each of the type of its default; a wrong one, or a stray word, raises UserError.

    Args:
        defaults: flag name to default: a string, int, float, bool or tuple.
        usage: what `--help` prints before the list of flags.
    """
    values = flags.FlagValues()
    for name, default in defaults.items():
        flags.DEFINE(_Value(name, default), name, default, "", flag_values=values)
    if any(word in ("--help", "-help", "--helpfull", "-h") for word in argv[1:]):
        print(usage.strip(), "\n\nFlags and their defaults:")
        for name, default in defaults.items():
            print(f"  --{name}={default}")
        sys.exit(0)
    switches = {f"--{name}" for name, default in defaults.items() if isinstance(default, bool)}
    followed = zip(argv, [*argv[1:], "--"], strict=True)
    words = [f"{word}=true" if word in switches and after.startswith("-") else word for word, after in followed]
    try:
        rest = values(words)[1:]
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, defaults, n=1, cutoff=0.5)
        mend = f"Did you mean --{near[0]}?" if near else "--help lists the flags."
        raise UserError(f"--{error.flagname}", "no such flag", mend) from error
    except (flags.Error, ValueError) as error:  # the second of a --flagfile that is no text, which absl reads
        raise _flag_error(str(error), defaults) from error
    if rest:
        mend = "Give every value with its flag: --name=value."
        raise UserError("command line", f"stray word{'s' * (len(rest) > 1)} {' '.join(map(repr, rest))}", mend)
    flags.FLAGS.mark_as_parsed()  # libraries that look at absl's own flags want them parsed
    return {name: values[name].value for name in defaults}


def given(argv: Sequence[str], name: str) -> str:
    """What the command line says of one flag, before the flags are known: a config or a run decides which there are."""
    found = ""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        match = re.fullmatch(rf"--?{re.escape(name)}(=(.*))?", word)
        if match:
            found = match[2] if match[1] else following
    return found


def _flag_error(message: str, defaults: dict[str, Any]) -> UserError:
    """absl's complaint as field, value and mend."""
    wrong = re.match(r"flag --([\w.]+)=(.*?): (.*)", message, re.DOTALL)
    if wrong:
        return UserError(f"--{wrong[1]}", repr(wrong[2]), wrong[3])
    missing = re.fullmatch(r"Missing value for flag --?([\w.]+)", message)
    if not missing:
        return UserError("command line", message, "Give every value with its flag: --name=value.")
    name = missing[1]
    example = f"--{name}={defaults.get(name, '…')}"
    return UserError(f"--{name}", "the value is missing", f"Give it as {example}.")


class _Value(flags.ArgumentParser):
    """A value of the type of its default, and nothing that only looks like one."""

    syntactic_help = ""

    def __init__(self, name: str, default: Any):
        super().__init__()
        self._kind = type(default)

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument
        return PARSERS[self._kind](argument.strip() if self._kind is not str else argument)

    def flag_type(self) -> str:
        return self._kind.__name__


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("Give true or false.")
    return text.lower() == "true"


def _parse_int(text: str) -> int:
    number = _parse_float(text, "Give a whole number.")
    if number != int(number):
        raise ValueError("Give a whole number.")
    return int(text.replace("_", "")) if re.fullmatch(r"[+-]?[\d_]+", text) else int(number)


def _parse_float(text: str, mend: str = "Give a number.") -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(mend) from None
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError(mend)
    return number


def _parse_tuple(text: str) -> tuple[Any, ...]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # it raises them all on purpose
        value = None
    if not isinstance(value, (tuple, list)) or not _is_plain(value):
        raise ValueError("Give a tuple: \"(('.*/bias', 0), ('.*', 1))\".")
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _is_plain(value: Any) -> bool:
    """Whether a value is of texts and numbers, which config.json can hold, none of them infinite or beyond 64 bits."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    if isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


PARSERS: dict[type, Callable[[str], Any]] = {
    bool: _parse_bool,
    int: _parse_int,
    float: _parse_float,
    str: str,
    tuple: _parse_tuple,
}
