"""Speed and quality, each a command that prints one JSON object."""
