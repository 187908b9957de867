"""The runtime behind HTTP, and a page to drop photographs on: the extra `serve`. Nothing in here writes a file."""
