"""Commands of the command line, one file each; main.py says which words lead to them."""
