"""Files and folders: written whole, read with checks."""
