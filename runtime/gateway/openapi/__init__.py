"""The description of the routes for machines."""
