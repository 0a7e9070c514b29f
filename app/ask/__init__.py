"""Ask a chat service one question and print the answer as it streams."""
