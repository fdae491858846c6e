"""What evaluation and comparison keep of each row, and what these add up to, a block of rows at a time."""
