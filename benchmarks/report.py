"""The pages of docs/performance: each is written as a whole by the script that measures its results."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import fastattn
from fastattn.commands.measuring import machine

FOLDER = Path(__file__).parents[1] / "docs" / "performance"

#: How the times of several engines are measured.
TURNS = "Every engine runs in a process of its own, all on the same number of threads, in turns; times are medians."


@dataclass(frozen=True)
class Page:
    """The name of a page's file, its title, its introduction, and the command that writes it."""

    name: str
    title: str
    about: str
    command: str

    @property
    def head(self):
        """The part of the page before the results."""
        return f"# {self.title}\n\n{self.about}\n\n```sh\npython benchmarks/{self.command} --page\n```\n"

    def write(self, results):
        """Write the page with new results, in Markdown."""
        (FOLDER / f"{self.name}.md").write_text(f"{self.head}\n{results}\n", encoding="utf-8")


def deliver(results, data, arguments, page):
    """Print the results, and write the page and the measurements if requested."""
    print(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(data, indent=2) + "\n")
    if arguments.page:
        page.write(results)


def print_or_write(table, page, description):
    """The main function of a script that makes a single table, without timing."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    add_page(parser)
    write = parser.parse_args().page
    results = f"{table()}\n\n{machine.line(machine.describe(['numpy'], fastattn.get_num_threads()))}"
    if write:
        page.write(results)
    else:
        print(results)


def add_page(parser):
    """Add the option that every script has."""
    parser.add_argument("--page", action="store_true", help="also write the script's page in docs/performance")
