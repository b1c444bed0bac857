"""Side by side with the systems that users would pick instead."""
