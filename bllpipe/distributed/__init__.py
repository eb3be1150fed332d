"""Process groups, streams, and the links that carry messages; nothing here knows a layer."""
