"""One model that answers: in a child process of decant's, or on a remote server."""
