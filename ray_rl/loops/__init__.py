"""The drivers. They know roles by what they do, and Ray not at all."""
