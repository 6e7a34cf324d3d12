"""Photographs of objects, one class each: how folders of them are listed, divided, decoded and kept."""
