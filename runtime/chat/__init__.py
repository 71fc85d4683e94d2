"""`decant chat`: conversations, their files and the terminal."""
