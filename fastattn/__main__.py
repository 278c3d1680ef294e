"""The command line: ``python -m fastattn COMMAND``.

A command is a row of :data:`COMMANDS` and a module of :mod:`fastattn.commands` with two functions,
``add_arguments(parser)`` and ``run(arguments) -> exit code``. A hyphen in its name is ``_`` in the module's. Only the
chosen module is imported.
"""

import argparse
import importlib
import sys

import fastattn
from fastattn.commands import files

COMMANDS = {
    "info": "show how this build was made, and what it uses on this machine",
    "check": "compare every operation with the float64 reference, on every target of this machine",
    "bench": "time the shapes of real models, in comparison with NumPy",
    "embed": "embed the lines of a file",
    "similar": "print the lines of a file that are most similar to a text",
    "rerank": "print the lines of a file that answer a text best, by a cross-encoder",
    "attention-map": "draw how much each token of a text attends to the others",
}


def main(argv=None):
    """Run one command and return its exit code."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="python -m fastattn",
        description="Transformer attention for CPUs on NumPy arrays.",
        epilog="commands:\n" + "\n".join(f"  {name:{width}}  {does}" for name, does in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastattn {fastattn.__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments; try COMMAND --help")
    with files.standard_output():
        chosen = parser.parse_args(argv)
        module = importlib.import_module(f"fastattn.commands.{chosen.command.replace('-', '_')}")
        command = argparse.ArgumentParser(
            prog=f"{parser.prog} {chosen.command}",
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        return module.run(command.parse_args(chosen.arguments))


if __name__ == "__main__":
    sys.exit(main())
