"""Process groups, streams and links for messages."""
