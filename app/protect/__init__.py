"""What protects keys beyond their secret: restrictions, signatures, watchful eyes."""
