"""CAM objects of other libraries as sources, a file a library."""
