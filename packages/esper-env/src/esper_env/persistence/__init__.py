"""Trees of arrays and JSON values, the states made of them, and the files that hold states."""
