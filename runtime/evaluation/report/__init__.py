"""Reports of an evaluation: files of results, tables for a terminal, a model card, a web page."""
