"""One model that answers: here in a child process, or on a server elsewhere."""
