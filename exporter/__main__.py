"""`python -m exporter` is `decant`."""

from exporter.cli.app import main

main()
