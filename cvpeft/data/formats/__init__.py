"""One file for each format of labels; the file name is the format's name on the command line.

A file holds two functions: `matches(tree)`, whether a folder looks like this format, and `read(tree)`, what it holds as
a `Found`. Both see the folder through its `Tree`, so that nothing outside of it is ever opened.
"""
