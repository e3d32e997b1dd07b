"""Where the objects in images are: masks, boxes and outlines, read from files."""
