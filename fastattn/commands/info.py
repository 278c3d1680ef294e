"""Show how this build was made, and what it uses on this machine."""

import json

import fastattn


def add_arguments(parser):
    """Describe the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments):
    """Print the configuration."""
    config = fastattn.show_config()
    width = max(map(len, config))
    lines = [f"{name:{width}}  {value}" for name, value in config.items()]
    print(json.dumps(config, indent=2) if arguments.json else "\n".join(lines))
    return 0
