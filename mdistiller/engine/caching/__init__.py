"""A frozen teacher's answers to every image in every crop and flip, kept in one file."""
