"""The HTTP server: access, the choice of the engine, the queue, and the routes."""
