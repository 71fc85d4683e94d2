"""Runs `decant` as `python -m exporter`."""

from exporter.cli.app import main

main()
