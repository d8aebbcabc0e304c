"""The one command, ``marketstream COMMAND``. A command is the ``main`` of a module, imported when it is asked for."""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

GROUPS = {
    "First": {"demo": ("demo", "the whole stream on this machine, from nothing")},
    "The stream": {
        "replay": ("producers.replay", "send a scenario's images to the topic"),
        "learn": ("consumers.learn", "learn from the topic while serving it"),
        "topics": ("pipeline.records.create", "create all topics; those that exist are left as they are"),
    },
    "What was learnt": {
        "predict": ("pipeline.snapshots.predict", "classify image files with a snapshot"),
        "history": ("pipeline.history.commands", "list, show, difference, verify, retract"),
    },
    "Beforehand": {
        "datasets": ("pipeline.data.datasets", "find, fetch and verify MNIST and Fashion-MNIST"),
        "pretrain": ("pipeline.learners.pretrain", "train a base model for --learner marketplace"),
    },
}
COMMANDS = {name: module for group in GROUPS.values() for name, (module, _) in group.items()}


def usage() -> str:
    """What ``--help`` prints."""
    lines = ["usage: marketstream COMMAND [--help] ...", "", "A classifier that learns while it serves."]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<10}{about}" for name, (_, about) in commands.items())]
    return "\n".join(
        [*lines, "", "Every command has --help and --json; every setting is also a variable MARKETSTREAM_NAME."]
    )


def main(command_line: Sequence[str]) -> int:
    """Do what the command line says; the exit status. Raises what the command raises."""
    name, *rest = command_line or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(version("marketstream"))
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"error: no command {name!r}: {hint}", file=sys.stderr)
        return 2
    sys.argv[0] = f"marketstream {name}"  # what the command's own usage begins with
    status: int = import_module(COMMANDS[name]).main(rest)
    return status


def program() -> None:
    """What the script ``marketstream`` runs."""
    if sys.argv[1:2] in ([], ["-h"], ["--help"], ["--version"]):
        sys.exit(main(sys.argv[1:]))
    from pipeline import cli  # reads the settings: a tenth of a second that --help need not wait for

    cli.run(lambda: main(sys.argv[1:]))


if __name__ == "__main__":
    program()
