"""The user study of the original paper, section 4.2: people say of pictures whether their colors are real."""
