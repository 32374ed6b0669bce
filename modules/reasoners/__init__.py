"""Back ends of the second reader, one file each."""
